/* The shared state of the simulated cards: what lies in the file, and how it is read and changed.
 *
 * Two copies of the whole state (slots) and one number, the generation, whose lowest bit says which slot counts. A
 * writer holds the file's lock, fills the other slot and then stores the next generation: killed before that store it
 * has changed nothing, after it everything. A reader copies the slot that counts and begins again when the generation
 * has moved meanwhile; it takes no lock, so a process that dies cannot hold it up. */
#ifndef SIMGPU_STATE_H
#define SIMGPU_STATE_H

#include "card.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define SIMGPU_MAGIC "simgpu\r\n"
#define LAYOUT_VERSION 1u

/* Events a card remembers. The oldest RING - RING_KEPT are spare: a writer overwrites only those while others read.
 */
enum { RING = 8192, RING_KEPT = 8000 };

/* The counter moves on boundaries of the state's clock. On the machine's clock it shows the last boundary that is at
 * least COUNTER_DELAY old: a writer that read the clock before a boundary and was not scheduled until after it would
 * otherwise take back millijoules that a reader has already seen. Writers give up a change older than half of that.
 */
#define COUNTER_PERIOD (100 * MILLISECOND)
#define COUNTER_DELAY (20 * MILLISECOND)

struct event {
    uint64_t at_ns;
    uint64_t draw_mw; /* from then on */
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
enum outcome apply_limit(struct change *change, unsigned index, uint32_t limit_mw);
void reload_card(struct card *card, struct event *ring, uint64_t first, uint64_t mask, uint64_t at_ns);

#endif
