/* What a card draws: the kinds of card there are, and where each settles at its load, clocks and limits. */
#ifndef SIMGPU_PHYSICS_H
#define SIMGPU_PHYSICS_H

#include "card.h"

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

#endif
