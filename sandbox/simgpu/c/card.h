/* One simulated card: its settings, what follows from them, and the faults that are on it.
 *
 * Draws are milliwatts and times nanoseconds, so energy is an integer of picojoules (mW x ns): no rounding, ever.
 * 128 bits, because 64 overflow after 17 hours at 300 W. */
#ifndef SIMGPU_CARD_H
#define SIMGPU_CARD_H

#include <stdint.h>

enum { MAX_CARDS = 16, MAX_FAULTS = 32, MAX_PROCESSES = 64, MAX_INSTANCES = 7, LIBRARY = MAX_CARDS };

#define SECOND UINT64_C(1000000000)
#define MILLISECOND UINT64_C(1000000)
#define PICOJOULES_PER_MILLIJOULE UINT64_C(1000000000)

typedef unsigned __int128 picojoules;

enum fault_kind {
    FAULT_FAIL = 1,
    FAULT_LOST,
    FAULT_RESET,
    FAULT_SLOW,
    FAULT_HANG,
    FAULT_NOT_LOADED,
    FAULT_STUCK,
    FAULT_GARBAGE,
    FAULT_SHIFTED,
    FAULT_SHARE
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
    uint64_t parameter; /* FAIL: the code; SLOW, HANG: milliseconds; GARBAGE: milliwatts;
                         * SHIFTED: millijoules, modulo 2^64; SHARE: parts per million */
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

#endif
