/* One NVML call: the card it is about, as it is now, with the faults scripted for it met. */
#ifndef SIMGPU_CALL_H
#define SIMGPU_CALL_H

#include "nvml.h"
#include "state.h"

#define EXPORT __attribute__((visibility("default")))

/* A mapping shared by all callers, freed when the last one that uses it is done. */
struct session {
    struct mapping mapping;
    unsigned users; /* calls under way, and one for being the current session */
};

struct handle {
    unsigned char card, instance; /* instance 0: the whole card; else 1 + its index */
};

extern struct handle handles[MAX_CARDS][1 + MAX_INSTANCES];

struct call {
    struct session *session;
    const struct profile *profile;
    const struct instance *instance; /* of a MIG handle, into view.card */
    struct view view;
};

#define ON_INSTANCES 0x80000000u /* beside a group: the call is answered for MIG handles too */

void leave(struct call *call);
int enter(struct call *call, nvmlDevice device, unsigned groups);
int enter_index(struct call *call, unsigned index, unsigned groups); /* LIBRARY: of no card */
const struct fault *meet(const struct view *view, uint32_t kind, uint32_t groups);

#define CALL __attribute__((cleanup(leave))) struct call call = {0}
#define TRY(expression)              \
    do {                             \
        int code_ = (expression);    \
        if (code_ != NVML_SUCCESS) { \
            return code_;            \
        }                            \
    } while (0)
#define NEED(condition) TRY((condition) ? NVML_SUCCESS : NVML_INVALID_ARGUMENT)
#define ENTER(device, groups) \
    CALL;                     \
    TRY(enter(&call, device, groups))

/* A function that fills one number, from `card` and `profile`. */
#define GETTER(function, group, type, expression)         \
    EXPORT int function(nvmlDevice device, type *value) { \
        ENTER(device, group);                             \
        NEED(value != NULL);                              \
        const struct card *card = &call.view.card;        \
        const struct profile *profile = call.profile;     \
        (void)card, (void)profile;                        \
        *value = (type)(expression);                      \
        return NVML_SUCCESS;                              \
    }

#define UNSUPPORTED(function, group, type)                \
    EXPORT int function(nvmlDevice device, type *value) { \
        ENTER(device, group);                             \
        NEED(value != NULL);                              \
        return NVML_NOT_SUPPORTED;                        \
    }

#endif
