/* The shared state of the simulated cards: what lies in the file, and how it is read and changed.
 *
 * Two copies of the whole state (slots) and one number, the generation, whose lowest bit says which slot counts. A
 * writer holds the file's lock, fills the other slot and then stores the next generation: killed before that store it
 * has changed nothing, after it everything. A reader copies the slot that counts and begins again when the generation
 * has moved meanwhile; it takes no lock, so nobody's death can hold it up.
 *
 * Draws are milliwatts and times nanoseconds, so energy is an integer of picojoules (mW x ns): no rounding, ever.
 * 128 bits, because 64 overflow after 17 hours at 300 W. */
#ifndef SIMGPU_STATE_H
#define SIMGPU_STATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIMGPU_MAGIC "simgpu\r\n"
#define LAYOUT_VERSION 1u

enum { MAX_CARDS = 16, MAX_FAULTS = 32, MAX_PROCESSES = 64, MAX_INSTANCES = 7, LIBRARY = MAX_CARDS };

/* Events a card remembers. The oldest RING - RING_KEPT are spare: a writer overwrites only those while others read.
 */
enum { RING = 8192, RING_KEPT = 8000 };

#define SECOND UINT64_C(1000000000)
#define MILLISECOND UINT64_C(1000000)
#define PICOJOULES_PER_MILLIJOULE UINT64_C(1000000000)

/* The counter moves on boundaries of the state's clock. On the machine's clock it shows the last boundary that is at
 * least COUNTER_DELAY old: a writer that read the clock before a boundary and was not scheduled until after it would
 * otherwise take back millijoules that a reader has already seen. Writers give up a change older than half of that.
 */
#define COUNTER_PERIOD (100 * MILLISECOND)
#define COUNTER_DELAY (20 * MILLISECOND)

typedef unsigned __int128 picojoules;

enum fault_kind {
    FAULT_FAIL = 1,
    FAULT_LOST,
    FAULT_RESET,
    FAULT_SLOW,
    FAULT_HANG,
    FAULT_NOT_LOADED,
    FAULT_STUCK,
    FAULT_GARBAGE
};

/* Which calls a fault concerns: a sum of these. */
enum call_group {
    GROUP_ENERGY = 1,
    GROUP_POWER = 2,
    GROUP_LIMIT = 4,
    GROUP_SET = 8,
    GROUP_PROCESSES = 16,
    GROUP_CLOCKS = 32,
    GROUP_UTILIZATION = 64,
    GROUP_MEMORY = 128,
    GROUP_IDENTITY = 256,
    GROUP_MIG = 512,
    GROUP_OTHER = 1024,
    GROUP_INIT = 2048,
};

struct fault {
    uint32_t kind;
    uint32_t groups;
    uint64_t from_ns;
    uint64_t until_ns;
    uint64_t parameter; /* FAIL: the code; SLOW, HANG: milliseconds; GARBAGE: milliwatts */
};

struct event {
    uint64_t at_ns;
    uint64_t draw_mw; /* from then on */
};

struct card_process {
    uint32_t pid;
    uint32_t instance; /* index of the MIG instance it runs in; UINT32_MAX: the whole card */
    uint64_t memory_bytes;
};

struct instance {
    uint32_t gpu_instance_id;
    uint32_t slices;
    uint32_t multiprocessors;
    uint32_t memory_mib;
    char profile[16];
    char uuid[48];
};

struct card {
    uint32_t profile;
    uint32_t mig;
    uint32_t instance_count;
    uint32_t process_count;
    uint32_t fault_count;
    uint32_t persistence;
    uint32_t limit_mw;
    uint32_t second_limit_mw;  /* 0: none */
    uint32_t locked_clock_mhz; /* 0: none */
    uint32_t load_ppm;
    /* What follows from the above: */
    uint32_t clock_mhz;
    uint32_t draw_mw;
    uint64_t reasons;
    uint64_t memory_bytes;
    uint64_t event_count;
    uint64_t last_ns;  /* when energy was integrated last */
    picojoules energy; /* until then */
    picojoules base;   /* what the counter counts from: the energy at the last driver reload */
    char uuid[48];
    char serial[16];
    struct card_process processes[MAX_PROCESSES];
    struct instance instances[MAX_INSTANCES];
    struct fault faults[MAX_FAULTS];
};

struct common {
    uint32_t card_count;
    uint32_t is_virtual;
    uint64_t virtual_ns;
    uint64_t created_ns;
    uint32_t fault_count;
    uint32_t padding;
    struct fault faults[MAX_FAULTS];
};

struct state {
    struct common common;
    struct card cards[MAX_CARDS];
};

struct simgpu_file {
    char magic[8];
    uint32_t version;
    uint32_t size;
    _Atomic uint64_t generation;
    _Atomic uint64_t slow_calls[MAX_CARDS + 1]; /* calls a SLOW fault met; the last one of the library itself */
    _Atomic uint64_t slow_ms[MAX_CARDS + 1];
    struct state slots[2];
    struct event rings[MAX_CARDS][RING];
};

struct mapping {
    struct simgpu_file *file;
    int descriptor;
    bool writable;
    char path[4096];
};

/* A consistent copy of one card at one time, with every scheduled reset that was due by then applied. */
struct view {
    const struct mapping *mapping;
    uint64_t now;
    uint64_t stored_events; /* the events from there on are in `late` */
    unsigned index;
    struct common common;
    struct card card;
    struct event late[MAX_FAULTS];
};

struct change {
    struct state *state;
    struct simgpu_file *file;
    uint64_t now;
    void *argument;
};

/* Answers of everything that can fail. */
enum outcome {
    DONE = 0,
    NO_FILE = -1,
    WRONG_LAYOUT = -2,
    NOT_WRITABLE = -3,
    NO_CARD = -4,
    OUT_OF_RANGE = -5,
    FULL = -6,
    SYSTEM = -7,
    OVERRUN = -8
};

enum outcome map_state(const char *path, struct mapping *mapping);
void unmap_state(struct mapping *mapping);
enum outcome create_state(const char *path, const struct state *initial, unsigned mode);

uint64_t machine_clock(void);
enum outcome look(const struct mapping *mapping, unsigned index, struct view *view);
picojoules energy_at(const struct view *view, uint64_t at_ns);
uint64_t counter_at(const struct view *view, uint64_t at_ns); /* mJ */
uint64_t average_draw(const struct view *view);               /* mW over the last second */
struct event read_event(const struct view *view, uint64_t number);
const struct fault *find_fault(const struct fault *faults, unsigned count, uint32_t kind, uint32_t groups,
                               uint64_t now);

enum outcome transact(const struct mapping *mapping, enum outcome (*apply)(struct change *), void *argument);
void touch(struct change *change, unsigned index);
void reload_card(struct card *card, struct event *ring, uint64_t first, uint64_t mask, uint64_t at_ns);

/* physics.c */
struct profile {
    const char *key;
    const char *name;
    uint32_t architecture, capability_major, capability_minor, brand;
    uint32_t multiprocessors, cores, bus_width, pci_device;
    uint32_t memory_mib, reserved_mib;
    uint32_t min_mw, default_mw, max_mw;
    uint32_t idle_mw, full_mw; /* at load 0; at load 1 and the highest clock */
    uint32_t linear_ppm;       /* share of the dynamic draw that grows with the clock, the rest with its cube */
    uint32_t memory_bound_ppm; /* share of a step's time that does not depend on the clock */
    uint32_t max_mhz, min_mhz, idle_mhz, application_mhz, memory_mhz, video_mhz;
    uint32_t averages; /* whether the power reading is the last second's average */
};

struct slice_profile {
    const char *card, *name;
    uint32_t slices, multiprocessors, memory_mib;
};

enum {
    CLOCK_STEP_MHZ = 15,
    REASON_IDLE = 1,
    REASON_CLOCK_SETTING = 2,
    REASON_POWER_CAP = 4,
    FULL_LOAD_PPM = 1000000
};

const struct profile *find_profile(uint32_t index);                                 /* NULL past the last */
const struct slice_profile *find_slice_profile(const char *card, const char *name); /* NULL name: any */
uint32_t enforced_limit(const struct card *card);
void find_operating_point(struct card *card);
double relative_throughput(const struct card *card);
enum outcome apply_limit(struct change *change, unsigned index, uint32_t limit_mw);

#endif
