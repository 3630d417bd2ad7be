/* What a card draws: profiles, the power model and the clock that follows from load and limits.
 *
 *   draw(load, clock) = idle + load * (full - idle) * (a * c + (1 - a) * c^3),  c = clock / highest clock
 *   throughput(clock) = 1 / (m + (1 - m) / c)
 *
 * When the draw at the highest clock is above the enforced limit, the clock falls in steps until it is not, but never
 * below the card's lowest clock; there the draw may exceed the limit, as it does in life. */
#include "physics.h"

#include <stddef.h>
#include <string.h>

/* Limits, clocks and application clocks are those that owners printed with `nvidia-smi -q`:
 *   V100  github.com/NVIDIA/nvidia-docker/issues/1076 (SXM2 32GB; the 16GB card is taken to be alike)
 *   A100  github.com/NVIDIA/nvidia-docker/issues/1648
 *   H100  limits: github.com/stackhpc/ansible-slurm-appliance/pull/975; clocks: github.com/NVIDIA/DCGM/issues/120
 * and the power reading's kind is what nvml.h says beside NVML_FI_DEV_POWER_AVERAGE (Ampere but GA100, and newer).
 * Everything else (memory, cores, bus width, PCI ids, idle and full draw, lowest clocks, a and m) is plausible value.
 * The V100's full draw, a and m were chosen so that time and energy of a full load at 225, 200, 175 and 150 W,
 * relative to 250 W, are within 3 % of the mean of the workloads that draw more than 215 W in Zeus's published V100
 * sweep (ml-energy/zeus). */
static const struct profile PROFILES[] = {
    {.key = "V100",
     .name = "Tesla V100-SXM2-16GB",
     .architecture = 5,
     .capability_major = 7,
     .capability_minor = 0,
     .brand = 2,
     .multiprocessors = 80,
     .cores = 5120,
     .bus_width = 4096,
     .pci_device = 0x1DB110DE,
     .memory_mib = 16384,
     .reserved_mib = 224,
     .min_mw = 150000,
     .default_mw = 300000,
     .max_mw = 300000,
     .idle_mw = 45000,
     .full_mw = 235000,
     .linear_ppm = 600000,
     .memory_bound_ppm = 500000,
     .max_mhz = 1530,
     .min_mhz = 135,
     .idle_mhz = 135,
     .application_mhz = 1290,
     .memory_mhz = 877,
     .video_mhz = 1372},
    {.key = "V100-32GB",
     .name = "Tesla V100-SXM2-32GB",
     .architecture = 5,
     .capability_major = 7,
     .capability_minor = 0,
     .brand = 2,
     .multiprocessors = 80,
     .cores = 5120,
     .bus_width = 4096,
     .pci_device = 0x1DB510DE,
     .memory_mib = 32768,
     .reserved_mib = 258,
     .min_mw = 150000,
     .default_mw = 300000,
     .max_mw = 300000,
     .idle_mw = 45000,
     .full_mw = 235000,
     .linear_ppm = 600000,
     .memory_bound_ppm = 500000,
     .max_mhz = 1530,
     .min_mhz = 135,
     .idle_mhz = 135,
     .application_mhz = 1290,
     .memory_mhz = 877,
     .video_mhz = 1372},
    {.key = "A100",
     .name = "NVIDIA A100-SXM4-40GB",
     .architecture = 7,
     .capability_major = 8,
     .capability_minor = 0,
     .brand = 14,
     .multiprocessors = 108,
     .cores = 6912,
     .bus_width = 5120,
     .pci_device = 0x20B010DE,
     .memory_mib = 40960,
     .reserved_mib = 424,
     .min_mw = 100000,
     .default_mw = 400000,
     .max_mw = 400000,
     .idle_mw = 50000,
     .full_mw = 360000,
     .linear_ppm = 600000,
     .memory_bound_ppm = 450000,
     .max_mhz = 1410,
     .min_mhz = 210,
     .idle_mhz = 210,
     .application_mhz = 1095,
     .memory_mhz = 1215,
     .video_mhz = 1290},
    {.key = "H100",
     .name = "NVIDIA H100 80GB HBM3",
     .architecture = 9,
     .capability_major = 9,
     .capability_minor = 0,
     .brand = 14,
     .multiprocessors = 132,
     .cores = 16896,
     .bus_width = 5120,
     .pci_device = 0x233010DE,
     .memory_mib = 81559,
     .reserved_mib = 551,
     .min_mw = 200000,
     .default_mw = 700000,
     .max_mw = 700000,
     .idle_mw = 70000,
     .full_mw = 640000,
     .linear_ppm = 550000,
     .memory_bound_ppm = 400000,
     .max_mhz = 1980,
     .min_mhz = 210,
     .idle_mhz = 345,
     .application_mhz = 1980,
     .memory_mhz = 2619,
     .video_mhz = 1545,
     .averages = 1},
};

/* A100: forums.developer.nvidia.com/t/170488 shows `nvidia-smi mig -lgip`. H100: plausible values. */
static const struct slice_profile SLICES[] = {
    {"A100", "1g.5gb", 1, 14, 4864},    {"A100", "2g.10gb", 2, 28, 9984},  {"A100", "3g.20gb", 3, 42, 20096},
    {"A100", "4g.20gb", 4, 56, 20096},  {"A100", "7g.40gb", 7, 98, 40448}, {"H100", "1g.10gb", 1, 16, 9984},
    {"H100", "2g.20gb", 2, 32, 20096},  {"H100", "3g.40gb", 3, 60, 40448}, {"H100", "4g.40gb", 4, 64, 40448},
    {"H100", "7g.80gb", 7, 132, 81152},
};

const struct profile *find_profile(uint32_t index) {
    return index < sizeof PROFILES / sizeof *PROFILES ? &PROFILES[index] : NULL;
}

const struct slice_profile *find_slice_profile(const char *card, const char *name) {
    for (size_t i = 0; i < sizeof SLICES / sizeof *SLICES; i++) {
        if (strcmp(SLICES[i].card, card) == 0 && (name == NULL || strcmp(SLICES[i].name, name) == 0)) {
            return &SLICES[i];
        }
    }
    return NULL;
}

uint32_t enforced_limit(const struct card *card) {
    uint32_t second = card->second_limit_mw;
    return second != 0 && second < card->limit_mw ? second : card->limit_mw;
}

static uint32_t draw_of(const struct profile *profile, uint32_t load_ppm, uint32_t clock_mhz) {
    double c = (double)clock_mhz / profile->max_mhz;
    double a = profile->linear_ppm / 1e6;
    double dynamic = (double)(profile->full_mw - profile->idle_mw) * (a * c + (1 - a) * c * c * c);
    return profile->idle_mw + (uint32_t)(load_ppm / 1e6 * dynamic + 0.5);
}

void find_operating_point(struct card *card) {
    const struct profile *profile = find_profile(card->profile);
    if (card->load_ppm == 0) {
        card->clock_mhz = profile->idle_mhz;
        card->draw_mw = profile->idle_mw;
        card->reasons = REASON_IDLE;
        return;
    }
    uint32_t top = card->locked_clock_mhz != 0 ? card->locked_clock_mhz : profile->max_mhz;
    uint32_t limit = enforced_limit(card);
    uint32_t clock = top;
    while (draw_of(profile, card->load_ppm, clock) > limit && clock >= profile->min_mhz + CLOCK_STEP_MHZ) {
        clock -= CLOCK_STEP_MHZ;
    }
    card->clock_mhz = clock;
    card->draw_mw = draw_of(profile, card->load_ppm, clock);
    card->reasons = clock < top || card->draw_mw > limit ? REASON_POWER_CAP : 0;
    if (card->reasons == 0 && top < profile->max_mhz) {
        card->reasons = REASON_CLOCK_SETTING;
    }
}

double relative_throughput(const struct card *card) {
    const struct profile *profile = find_profile(card->profile);
    struct card busy = {.profile = card->profile,
                        .limit_mw = card->limit_mw,
                        .load_ppm = card->load_ppm,
                        .second_limit_mw = card->second_limit_mw,
                        .locked_clock_mhz = card->locked_clock_mhz};
    if (busy.load_ppm == 0) {
        /* An idle card's low clock slows no program: the answer is what a full load would meet. */
        busy.load_ppm = FULL_LOAD_PPM;
    }
    find_operating_point(&busy);
    double m = profile->memory_bound_ppm / 1e6;
    return 1 / (m + (1 - m) * profile->max_mhz / busy.clock_mhz);
}
