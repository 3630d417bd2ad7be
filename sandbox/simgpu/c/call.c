/* How every NVML call begins and ends: one session per process, one look at the card, faults before the answer. */
#define _GNU_SOURCE
#include "call.h"
#include "physics.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct handle handles[MAX_CARDS][1 + MAX_INSTANCES];

static pthread_mutex_t session_lock = PTHREAD_MUTEX_INITIALIZER;
static struct session *current_session;
static unsigned initialised;

/* A fork may happen while another thread holds the lock; the child has no such thread to release it. */
static void renew_lock(void) { pthread_mutex_init(&session_lock, NULL); }

__attribute__((constructor)) static void prepare(void) {
    pthread_atfork(NULL, NULL, renew_lock);
    for (unsigned i = 0; i < MAX_CARDS * (1 + MAX_INSTANCES); i++) {
        (&handles[0][0])[i] =
            (struct handle){(unsigned char)(i / (1 + MAX_INSTANCES)), (unsigned char)(i % (1 + MAX_INSTANCES))};
    }
}

static struct session *acquire_session(void) {
    pthread_mutex_lock(&session_lock);
    struct session *session = current_session;
    if (session != NULL) {
        session->users++;
    }
    pthread_mutex_unlock(&session_lock);
    return session;
}

static void release_locked(struct session *session) {
    if (--session->users == 0) {
        unmap_state(&session->mapping);
        free(session);
    }
}

static void release_session(struct session *session) {
    pthread_mutex_lock(&session_lock);
    release_locked(session);
    pthread_mutex_unlock(&session_lock);
}

static void find_state(char *path, size_t size) {
    const char *configured = getenv("GREENTRAIN_SIMGPU_STATE");
    if (configured != NULL && *configured != '\0') {
        snprintf(path, size, "%s", configured);
        return;
    }
    Dl_info where;
    char folder[4000] = ".";
    if (dladdr((const void *)&handles, &where) != 0 && strchr(where.dli_fname, '/') != NULL) {
        snprintf(folder, sizeof folder, "%s", where.dli_fname);
        *strrchr(folder, '/') = '\0';
    }
    snprintf(path, size, "%s/state", folder);
}

/* --- One call */

void leave(struct call *call) {
    if (call->session != NULL) {
        release_session(call->session);
    }
}

static void sleep_ms(uint64_t milliseconds) {
    struct timespec left = {(time_t)(milliseconds / 1000), (long)(milliseconds % 1000 * MILLISECOND)};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

const struct fault *meet(const struct view *view, uint32_t kind, uint32_t groups) {
    const struct fault *fault = find_fault(view->common.faults, view->common.fault_count, kind, groups, view->now);
    if (fault == NULL) {
        fault = find_fault(view->card.faults, view->card.fault_count, kind, groups, view->now);
    }
    return fault;
}

/* Spend the time that SLOW and HANG faults cost, then look anew. */
static void linger(struct call *call, unsigned index, uint32_t groups) {
    struct view *view = &call->view;
    const struct fault *slow = meet(view, FAULT_SLOW, groups);
    bool waited = false;
    if (slow != NULL) {
        if (call->session->mapping.writable) {
            struct simgpu_file *file = call->session->mapping.file;
            atomic_fetch_add(&file->slow_calls[index], 1);
            atomic_fetch_add(&file->slow_ms[index], slow->parameter);
        }
        if (!view->common.is_virtual) {
            sleep_ms(slow->parameter);
            waited = true;
        }
    }
    uint64_t began = machine_clock();
    for (const struct fault *hang; (hang = meet(view, FAULT_HANG, groups)) != NULL; waited = true) {
        if (hang->parameter != 0 && machine_clock() - began >= hang->parameter * MILLISECOND) {
            break;
        }
        sleep_ms(2);
        look(&call->session->mapping, index, view);
    }
    if (waited) {
        look(&call->session->mapping, index, view);
    }
}

int enter_index(struct call *call, unsigned index, unsigned groups) {
    call->session = acquire_session();
    if (call->session == NULL) {
        return NVML_UNINITIALIZED;
    }
    if (look(&call->session->mapping, index, &call->view) != DONE && index != LIBRARY) {
        return NVML_INVALID_ARGUMENT;
    }
    linger(call, index, groups);
    if (meet(&call->view, FAULT_LOST, groups) != NULL) {
        return NVML_GPU_IS_LOST;
    }
    const struct fault *failure = meet(&call->view, FAULT_FAIL, groups);
    if (failure != NULL) {
        return (int)failure->parameter;
    }
    call->profile = index == LIBRARY ? NULL : find_profile(call->view.card.profile);
    return NVML_SUCCESS;
}

int enter(struct call *call, nvmlDevice device, unsigned groups) {
    const struct handle *first = &handles[0][0];
    if (device < first || device >= first + sizeof handles / sizeof *first ||
        ((uintptr_t)device - (uintptr_t)first) % sizeof *first != 0) {
        struct session *session = acquire_session();
        if (session == NULL) {
            return NVML_UNINITIALIZED;
        }
        release_session(session);
        return NVML_INVALID_ARGUMENT;
    }
    int code = enter_index(call, device->card, groups & ~ON_INSTANCES);
    if (code == NVML_SUCCESS && device->instance != 0) {
        if (device->instance > call->view.card.instance_count) {
            return NVML_INVALID_ARGUMENT;
        }
        call->instance = &call->view.card.instances[device->instance - 1];
        code = groups & ON_INSTANCES ? NVML_SUCCESS : NVML_NOT_SUPPORTED;
    }
    return code;
}

/* --- Initialisation */

static enum outcome open_session(struct session **session) {
    struct session *fresh = calloc(1, sizeof *fresh);
    char path[sizeof fresh->mapping.path];
    if (fresh == NULL) {
        return SYSTEM;
    }
    find_state(path, sizeof path);
    enum outcome outcome = map_state(path, &fresh->mapping);
    if (outcome != DONE) {
        free(fresh);
        return outcome;
    }
    fresh->users = 1;
    *session = fresh;
    return DONE;
}

static int initialise(void) {
    static const int codes[] = {[-NO_FILE] = NVML_DRIVER_NOT_LOADED,
                                [-WRONG_LAYOUT] = NVML_LIB_RM_VERSION_MISMATCH,
                                [-SYSTEM] = NVML_NO_PERMISSION};
    struct session *session = acquire_session();
    enum outcome outcome = session == NULL ? open_session(&session) : DONE;
    if (outcome != DONE) {
        return codes[-outcome];
    }
    struct call call = {.session = session};
    look(&session->mapping, LIBRARY, &call.view);
    linger(&call, LIBRARY, GROUP_INIT);
    const struct fault *failure = meet(&call.view, FAULT_FAIL, GROUP_INIT);
    int code = failure != NULL ? (int)failure->parameter : NVML_SUCCESS;
    if (meet(&call.view, FAULT_NOT_LOADED, GROUP_INIT) != NULL) {
        code = NVML_DRIVER_NOT_LOADED;
    }
    pthread_mutex_lock(&session_lock);
    if (code == NVML_SUCCESS) {
        if (current_session == NULL) {
            current_session = session;
            session->users++;
        }
        initialised++;
    }
    release_locked(session);
    pthread_mutex_unlock(&session_lock);
    return code;
}

EXPORT int nvmlInit_v2(void) { return initialise(); }
EXPORT int nvmlInit(void) { return initialise(); }
EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return initialise();
}

EXPORT int nvmlShutdown(void) {
    int code = NVML_UNINITIALIZED;
    pthread_mutex_lock(&session_lock);
    if (initialised > 0) {
        code = NVML_SUCCESS;
        if (--initialised == 0) {
            release_locked(current_session);
            current_session = NULL;
        }
    }
    pthread_mutex_unlock(&session_lock);
    return code;
}
