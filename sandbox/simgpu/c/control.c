/* libsimgpu.so: what makes, changes and inspects simulated cards; sandbox/simgpu/cards.py calls it.
 *
 * None of it is in libnvidia-ml.so.1, so no program that speaks NVML can reach it. Functions answer an `enum
 * outcome`. */
#include "state.h"
#include "physics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

struct simgpu_card_options {
    uint32_t profile;
    uint32_t mig;
    uint32_t instance_count;
    uint32_t persistence;
    char instances[MAX_INSTANCES][16];
};

/* One card at one time, for Python. */
struct simgpu_reading {
    uint64_t now_ns;
    uint64_t energy_high, energy_low; /* pJ since creation, exact */
    uint64_t counter_mj;
    uint64_t event_count;
    uint64_t reasons;
    uint64_t memory_bytes;
    uint64_t draw_mw, average_mw;
    uint64_t limit_mw, second_limit_mw, enforced_mw;
    uint64_t clock_mhz, load_ppm, persistence, mig, instance_count, fault_count;
    uint64_t slow_calls, slow_ms, profile;
    double throughput;
    char uuid[48];
    char serial[16];
};

struct simgpu_profile {
    uint64_t min_mw, default_mw, max_mw, idle_mw, full_mw, min_mhz, max_mhz, memory_mib;
    char key[16];
    char name[64];
};

static uint64_t scramble(uint64_t value) {
    /* The finaliser of splitmix64: every bit of the input moves every bit of the output. */
    value += UINT64_C(0x9E3779B97F4A7C15);
    value = (value ^ (value >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94D049BB133111EB);
    return value ^ (value >> 31);
}

static void write_uuid(char *text, size_t size, const char *prefix, uint64_t seed, uint64_t number) {
    uint64_t high = scramble(scramble(seed) + 2 * number);
    uint64_t low = scramble(high + scramble(seed) + number);
    snprintf(text, size, "%s-%08x-%04x-%04x-%04x-%012llx", prefix, (unsigned)(high >> 32),
             (unsigned)(high >> 16) & 0xFFFF, (unsigned)high & 0xFFFF, (unsigned)(low >> 48),
             (unsigned long long)(low & UINT64_C(0xFFFFFFFFFFFF)));
}

EXPORT uint64_t simgpu_layout(void) {
    return (uint64_t)sizeof(struct simgpu_reading) << 32 | sizeof(struct simgpu_card_options) << 16 |
           sizeof(struct simgpu_profile);
}

EXPORT int simgpu_profile(uint32_t index, struct simgpu_profile *out) {
    const struct profile *profile = find_profile(index);
    if (profile == NULL) {
        return NO_CARD;
    }
    *out = (struct simgpu_profile){profile->min_mw,
                                   profile->default_mw,
                                   profile->max_mw,
                                   profile->idle_mw,
                                   profile->full_mw,
                                   profile->min_mhz,
                                   profile->max_mhz,
                                   profile->memory_mib,
                                   "",
                                   ""};
    snprintf(out->key, sizeof out->key, "%s", profile->key);
    snprintf(out->name, sizeof out->name, "%s", profile->name);
    return DONE;
}

EXPORT int simgpu_create(const char *path, const struct simgpu_card_options *options, uint32_t count, int is_virtual,
                         uint64_t seed, uint32_t mode) {
    if (count == 0 || count > MAX_CARDS) {
        return OUT_OF_RANGE;
    }
    struct state *state = calloc(1, sizeof *state);
    if (state == NULL) {
        return SYSTEM;
    }
    uint64_t now = is_virtual ? 0 : machine_clock();
    state->common = (struct common){.card_count = count, .is_virtual = is_virtual != 0, .created_ns = now};
    enum outcome outcome = DONE;
    for (uint32_t i = 0; i < count && outcome == DONE; i++) {
        struct card *card = &state->cards[i];
        const struct profile *profile = find_profile(options[i].profile);
        if (profile == NULL || options[i].instance_count > MAX_INSTANCES) {
            outcome = OUT_OF_RANGE;
            break;
        }
        *card = (struct card){.profile = options[i].profile,
                              .mig = options[i].mig,
                              .persistence = options[i].persistence,
                              .instance_count = options[i].instance_count,
                              .limit_mw = profile->default_mw,
                              .event_count = 1,
                              .last_ns = now};
        find_operating_point(card);
        write_uuid(card->uuid, sizeof card->uuid, "GPU", seed, i);
        snprintf(card->serial, sizeof card->serial, "%013llu",
                 (unsigned long long)(scramble(seed + i) % UINT64_C(10000000000000)));
        uint32_t slices = 0;
        for (uint32_t j = 0; j < card->instance_count; j++) {
            const struct slice_profile *slice = find_slice_profile(profile->key, options[i].instances[j]);
            if (slice == NULL || (slices += slice->slices) > 7) {
                outcome = OUT_OF_RANGE;
                break;
            }
            struct instance *instance = &card->instances[j];
            *instance = (struct instance){.gpu_instance_id = j + 1,
                                          .slices = slice->slices,
                                          .multiprocessors = slice->multiprocessors,
                                          .memory_mib = slice->memory_mib};
            snprintf(instance->profile, sizeof instance->profile, "%s", slice->name);
            write_uuid(instance->uuid, sizeof instance->uuid, "MIG", seed, 1000 + i * MAX_INSTANCES + j);
        }
    }
    if (outcome == DONE) {
        outcome = create_state(path, state, mode);
    }
    free(state);
    return outcome;
}

EXPORT int simgpu_open(const char *path, struct mapping **out, int *writable) {
    struct mapping *mapping = malloc(sizeof *mapping);
    if (mapping == NULL) {
        return SYSTEM;
    }
    enum outcome outcome = map_state(path, mapping);
    if (outcome != DONE) {
        free(mapping);
        return outcome;
    }
    *out = mapping;
    *writable = mapping->writable;
    return DONE;
}

EXPORT void simgpu_close(struct mapping *mapping) {
    unmap_state(mapping);
    free(mapping);
}

EXPORT int simgpu_clock(const struct mapping *mapping, uint64_t *now_ns, uint32_t *card_count, int *is_virtual) {
    struct view view;
    look(mapping, LIBRARY, &view);
    *now_ns = view.now;
    *card_count = view.common.card_count;
    *is_virtual = view.common.is_virtual != 0;
    return DONE;
}

EXPORT int simgpu_read(const struct mapping *mapping, uint32_t index, struct simgpu_reading *out) {
    struct view view;
    enum outcome outcome = look(mapping, index, &view);
    if (outcome != DONE) {
        return outcome;
    }
    const struct card *card = &view.card;
    picojoules energy = energy_at(&view, view.now);
    *out = (struct simgpu_reading){.now_ns = view.now,
                                   .energy_high = (uint64_t)(energy >> 64),
                                   .energy_low = (uint64_t)energy,
                                   .counter_mj = counter_at(&view, view.now),
                                   .event_count = card->event_count,
                                   .reasons = card->reasons,
                                   .memory_bytes = card->memory_bytes,
                                   .draw_mw = card->draw_mw,
                                   .average_mw = average_draw(&view),
                                   .limit_mw = card->limit_mw,
                                   .second_limit_mw = card->second_limit_mw,
                                   .enforced_mw = enforced_limit(card),
                                   .clock_mhz = card->clock_mhz,
                                   .load_ppm = card->load_ppm,
                                   .persistence = card->persistence,
                                   .mig = card->mig,
                                   .instance_count = card->instance_count,
                                   .fault_count = card->fault_count,
                                   .slow_calls = atomic_load(&mapping->file->slow_calls[index]),
                                   .slow_ms = atomic_load(&mapping->file->slow_ms[index]),
                                   .profile = card->profile,
                                   .throughput = relative_throughput(card)};
    memcpy(out->uuid, card->uuid, sizeof out->uuid);
    memcpy(out->serial, card->serial, sizeof out->serial);
    return DONE;
}

EXPORT int simgpu_instance(const struct mapping *mapping, uint32_t index, uint32_t number, char uuid[48],
                           char profile[16]) {
    struct view view;
    enum outcome outcome = look(mapping, index, &view);
    if (outcome == DONE && number >= view.card.instance_count) {
        outcome = NO_CARD;
    }
    if (outcome == DONE) {
        memcpy(uuid, view.card.instances[number].uuid, 48);
        memcpy(profile, view.card.instances[number].profile, 16);
    }
    return outcome;
}

/* Up to `room` events of a card from number `since` on; `count` is how many were written. */
EXPORT int simgpu_events(const struct mapping *mapping, uint32_t index, uint64_t since, struct event *events,
                         uint32_t room, uint32_t *count) {
    struct view view;
    enum outcome outcome = look(mapping, index, &view);
    if (outcome != DONE) {
        return outcome;
    }
    *count = 0;
    for (uint64_t number = since; number < view.card.event_count && *count < room; number++) {
        events[(*count)++] = read_event(&view, number);
    }
    /* Only now is it known whether anything was overwritten while it was copied. */
    uint64_t generation = atomic_load(&mapping->file->generation);
    uint64_t newest = mapping->file->slots[generation & 1].cards[index].event_count;
    return newest > since && newest - since > RING_KEPT ? OVERRUN : DONE;
}

/* --- Changes */

struct request {
    uint32_t index;
    uint64_t value;
    uint32_t count;
    const struct card_process *processes;
    struct fault fault;
};

static struct card *requested(struct change *change) {
    const struct request *request = change->argument;
    return &change->state->cards[request->index];
}

static enum outcome submit(const struct mapping *mapping, enum outcome (*apply)(struct change *),
                           struct request request) {
    struct view view;
    if (request.index != LIBRARY && look(mapping, request.index, &view) != DONE) {
        return NO_CARD;
    }
    return transact(mapping, apply, &request);
}

#define VALUE ((const struct request *)change->argument)->value

static enum outcome apply_load(struct change *change) {
    requested(change)->load_ppm = (uint32_t)VALUE;
    touch(change, ((const struct request *)change->argument)->index);
    return DONE;
}

EXPORT int simgpu_set_load(const struct mapping *mapping, uint32_t index, uint32_t load_ppm) {
    return load_ppm > FULL_LOAD_PPM
               ? OUT_OF_RANGE
               : submit(mapping, apply_load, (struct request){.index = index, .value = load_ppm});
}

static enum outcome apply_requested_limit(struct change *change) {
    return apply_limit(change, ((const struct request *)change->argument)->index, (uint32_t)VALUE);
}

EXPORT int simgpu_set_limit(const struct mapping *mapping, uint32_t index, uint32_t limit_mw) {
    return submit(mapping, apply_requested_limit, (struct request){.index = index, .value = limit_mw});
}

static enum outcome apply_second_limit(struct change *change) {
    requested(change)->second_limit_mw = (uint32_t)VALUE;
    touch(change, ((const struct request *)change->argument)->index);
    return DONE;
}

EXPORT int simgpu_set_second_limit(const struct mapping *mapping, uint32_t index, uint32_t limit_mw) {
    return submit(mapping, apply_second_limit, (struct request){.index = index, .value = limit_mw});
}

static enum outcome apply_persistence(struct change *change) {
    requested(change)->persistence = VALUE != 0;
    return DONE;
}

EXPORT int simgpu_set_persistence(const struct mapping *mapping, uint32_t index, uint32_t enabled) {
    return submit(mapping, apply_persistence, (struct request){.index = index, .value = enabled});
}

static enum outcome apply_memory(struct change *change) {
    requested(change)->memory_bytes = VALUE;
    return DONE;
}

EXPORT int simgpu_set_memory(const struct mapping *mapping, uint32_t index, uint64_t bytes) {
    return submit(mapping, apply_memory, (struct request){.index = index, .value = bytes});
}

static enum outcome apply_processes(struct change *change) {
    const struct request *request = change->argument;
    struct card *card = requested(change);
    card->process_count = request->count;
    card->memory_bytes = 0;
    for (uint32_t i = 0; i < request->count; i++) {
        card->processes[i] = request->processes[i];
        card->memory_bytes += request->processes[i].memory_bytes;
        if (card->processes[i].instance != UINT32_MAX && card->processes[i].instance >= card->instance_count) {
            return OUT_OF_RANGE;
        }
    }
    return DONE;
}

EXPORT int simgpu_set_processes(const struct mapping *mapping, uint32_t index, const struct card_process *processes,
                                uint32_t count) {
    return count > MAX_PROCESSES ? FULL
                                 : submit(mapping, apply_processes,
                                          (struct request){.index = index, .count = count, .processes = processes});
}

/* Add a fault to a list, over those whose window has passed. */
static enum outcome add_fault(struct fault *faults, uint32_t *count, struct fault fault, uint64_t now) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < *count; i++) {
        if (faults[i].until_ns > now || faults[i].kind == FAULT_RESET) {
            faults[kept++] = faults[i];
        }
    }
    *count = kept;
    if (kept == MAX_FAULTS) {
        return FULL;
    }
    faults[(*count)++] = fault;
    return DONE;
}

static enum outcome apply_fault(struct change *change) {
    const struct request *request = change->argument;
    struct state *state = change->state;
    enum outcome outcome = DONE;
    if (request->index == LIBRARY && request->fault.kind != FAULT_RESET) {
        return add_fault(state->common.faults, &state->common.fault_count, request->fault, change->now);
    }
    /* A reload of the driver meets every card; each keeps its own entry until it has happened there. */
    for (uint32_t i = 0; i < state->common.card_count && outcome == DONE; i++) {
        if (request->index == LIBRARY || request->index == i) {
            outcome = add_fault(state->cards[i].faults, &state->cards[i].fault_count, request->fault, change->now);
        }
    }
    return outcome;
}

EXPORT int simgpu_add_fault(const struct mapping *mapping, uint32_t index, uint32_t kind, uint32_t groups,
                            uint64_t from_ns, uint64_t until_ns, uint64_t parameter) {
    return submit(mapping, apply_fault,
                  (struct request){.index = index, .fault = {kind, groups, from_ns, until_ns, parameter}});
}

static enum outcome apply_clear(struct change *change) {
    const struct request *request = change->argument;
    if (request->index == LIBRARY) {
        change->state->common.fault_count = 0;
    }
    for (uint32_t i = 0; i < change->state->common.card_count; i++) {
        if (request->index == LIBRARY || request->index == i) {
            change->state->cards[i].fault_count = 0;
        }
    }
    return DONE;
}

EXPORT int simgpu_clear_faults(const struct mapping *mapping, uint32_t index) {
    return submit(mapping, apply_clear, (struct request){.index = index});
}

static enum outcome apply_reload(struct change *change) {
    const struct request *request = change->argument;
    for (uint32_t i = 0; i < change->state->common.card_count; i++) {
        if (request->index == LIBRARY || request->index == i) {
            reload_card(&change->state->cards[i], change->file->rings[i], 0, RING - 1, change->now);
        }
    }
    return DONE;
}

EXPORT int simgpu_reload(const struct mapping *mapping, uint32_t index) {
    return submit(mapping, apply_reload, (struct request){.index = index});
}

static enum outcome apply_advance(struct change *change) {
    if (!change->state->common.is_virtual) {
        return OUT_OF_RANGE;
    }
    change->state->common.virtual_ns += VALUE;
    return DONE;
}

EXPORT int simgpu_advance(const struct mapping *mapping, uint64_t nanoseconds) {
    return submit(mapping, apply_advance, (struct request){.index = LIBRARY, .value = nanoseconds});
}
