/* The file that every process maps: opening it, copying one card out of it, changing it whole. */
#define _GNU_SOURCE
#include "state.h"
#include "physics.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

uint64_t machine_clock(void) {
    /* The same in every container of a machine, and it runs on while the machine sleeps. */
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

enum outcome map_state(const char *path, struct mapping *mapping) {
    *mapping = (struct mapping){.writable = true, .descriptor = -1};
    if (strlen(path) >= sizeof mapping->path) {
        return NO_FILE;
    }
    strcpy(mapping->path, path);
    mapping->descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (mapping->descriptor < 0 && (errno == EACCES || errno == EROFS || errno == EPERM)) {
        mapping->writable = false;
        mapping->descriptor = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (mapping->descriptor < 0) {
        return errno == ENOENT || errno == ENOTDIR ? NO_FILE : SYSTEM;
    }
    struct stat status;
    enum outcome outcome = WRONG_LAYOUT;
    if (fstat(mapping->descriptor, &status) == 0 && status.st_size == (off_t)sizeof(struct simgpu_file)) {
        int protection = mapping->writable ? PROT_READ | PROT_WRITE : PROT_READ;
        void *memory = mmap(NULL, sizeof(struct simgpu_file), protection, MAP_SHARED, mapping->descriptor, 0);
        mapping->file = memory == MAP_FAILED ? NULL : memory;
        outcome = mapping->file == NULL ? SYSTEM : DONE;
    }
    if (outcome == DONE &&
        (memcmp(mapping->file->magic, SIMGPU_MAGIC, sizeof mapping->file->magic) != 0 ||
         mapping->file->version != LAYOUT_VERSION || mapping->file->size != sizeof(struct simgpu_file))) {
        outcome = WRONG_LAYOUT;
    }
    if (outcome != DONE) {
        unmap_state(mapping);
    }
    return outcome;
}

void unmap_state(struct mapping *mapping) {
    if (mapping->file != NULL) {
        munmap(mapping->file, sizeof(struct simgpu_file));
    }
    if (mapping->descriptor >= 0) {
        close(mapping->descriptor);
    }
    mapping->file = NULL;
    mapping->descriptor = -1;
}

enum outcome create_state(const char *path, const struct state *initial, unsigned mode) {
    char partial[PATH_MAX];
    if (snprintf(partial, sizeof partial, "%s.XXXXXX", path) >= (int)sizeof partial) {
        return SYSTEM;
    }
    int descriptor = mkstemp(partial);
    if (descriptor < 0) {
        return SYSTEM;
    }
    enum outcome outcome = SYSTEM;
    struct simgpu_file *file = MAP_FAILED;
    if (ftruncate(descriptor, (off_t)sizeof *file) == 0) {
        file = mmap(NULL, sizeof *file, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    }
    if (file != MAP_FAILED) {
        memcpy(file->magic, SIMGPU_MAGIC, sizeof file->magic);
        file->version = LAYOUT_VERSION;
        file->size = sizeof *file;
        file->slots[0] = *initial;
        for (unsigned i = 0; i < initial->common.card_count; i++) {
            file->rings[i][0] = (struct event){initial->cards[i].last_ns, initial->cards[i].draw_mw};
        }
        munmap(file, sizeof *file);
        /* A file that is there whole or not at all: programs that use the old one keep it. */
        if (fchmod(descriptor, mode) == 0 && rename(partial, path) == 0) {
            outcome = DONE;
        }
    }
    close(descriptor);
    if (outcome != DONE) {
        unlink(partial);
    }
    return outcome;
}

static void integrate(struct card *card, uint64_t at_ns) {
    if (at_ns > card->last_ns) {
        card->energy += (picojoules)card->draw_mw * (at_ns - card->last_ns);
        card->last_ns = at_ns;
    }
}

/* Recompute the card at a time and append the change of its draw, if there is one. */
static void update(struct card *card, struct event *ring, uint64_t first, uint64_t mask, uint64_t at_ns) {
    integrate(card, at_ns);
    uint32_t before = card->draw_mw;
    find_operating_point(card);
    if (card->draw_mw != before) {
        ring[(card->event_count - first) & mask] = (struct event){card->last_ns, card->draw_mw};
        card->event_count++;
    }
}

void reload_card(struct card *card, struct event *ring, uint64_t first, uint64_t mask, uint64_t at_ns) {
    integrate(card, at_ns);
    card->base = card->energy;
    card->limit_mw = find_profile(card->profile)->default_mw;
    card->locked_clock_mhz = 0;
    card->persistence = 0;
    update(card, ring, first, mask, at_ns);
}

/* Apply the resets that were scheduled for a time that has come, each at its own time. */
static void settle(struct card *card, struct event *ring, uint64_t first, uint64_t mask, uint64_t now) {
    for (;;) {
        unsigned due = MAX_FAULTS;
        for (unsigned i = 0; i < card->fault_count; i++) {
            const struct fault *fault = &card->faults[i];
            if (fault->kind == FAULT_RESET && fault->from_ns <= now &&
                (due == MAX_FAULTS || fault->from_ns < card->faults[due].from_ns)) {
                due = i;
            }
        }
        if (due == MAX_FAULTS) {
            return;
        }
        reload_card(card, ring, first, mask, card->faults[due].from_ns);
        card->faults[due] = card->faults[--card->fault_count];
    }
}

enum outcome look(const struct mapping *mapping, unsigned index, struct view *view) {
    struct simgpu_file *file = mapping->file;
    for (;;) {
        uint64_t generation = atomic_load_explicit(&file->generation, memory_order_acquire);
        const struct state *slot = &file->slots[generation & 1];
        memcpy(&view->common, &slot->common, sizeof view->common);
        if (index >= MAX_CARDS) {
            view->card = (struct card){0};
        } else {
            memcpy(&view->card, &slot->cards[index], sizeof view->card);
        }
        view->now = view->common.is_virtual ? view->common.virtual_ns : machine_clock();
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&file->generation, memory_order_relaxed) == generation) {
            break;
        }
    }
    view->mapping = mapping;
    view->index = index;
    if (index >= view->common.card_count) {
        return NO_CARD;
    }
    view->stored_events = view->card.event_count;
    settle(&view->card, view->late, view->stored_events, MAX_FAULTS - 1, view->now);
    if (view->now < view->card.last_ns) {
        view->now = view->card.last_ns;
    }
    return DONE;
}

struct event read_event(const struct view *view, uint64_t number) {
    return number >= view->stored_events ? view->late[number - view->stored_events]
                                         : view->mapping->file->rings[view->index][number & (RING - 1)];
}

picojoules energy_at(const struct view *view, uint64_t at_ns) {
    const struct card *card = &view->card;
    if (at_ns >= card->last_ns) {
        return card->energy + (picojoules)card->draw_mw * (at_ns - card->last_ns);
    }
    picojoules energy = card->energy;
    uint64_t end = card->last_ns;
    uint64_t oldest = card->event_count > RING_KEPT ? card->event_count - RING_KEPT : 0;
    for (uint64_t number = card->event_count; number > oldest && end > at_ns; number--) {
        struct event event = read_event(view, number - 1);
        uint64_t start = event.at_ns > at_ns ? event.at_ns : at_ns;
        energy -= (picojoules)event.draw_mw * (end - start);
        end = start;
    }
    return energy;
}

uint64_t counter_at(const struct view *view, uint64_t at_ns) {
    uint64_t delay = view->common.is_virtual ? 0 : COUNTER_DELAY;
    uint64_t seen = at_ns > delay ? at_ns - delay : 0;
    picojoules energy = energy_at(view, seen - seen % COUNTER_PERIOD);
    return energy > view->card.base ? (uint64_t)((energy - view->card.base) / PICOJOULES_PER_MILLIJOULE) : 0;
}

uint64_t average_draw(const struct view *view) {
    uint64_t start = view->now > SECOND ? view->now - SECOND : 0;
    if (start < view->common.created_ns) {
        start = view->common.created_ns;
    }
    if (start >= view->now) {
        return view->card.draw_mw;
    }
    uint64_t span = view->now - start;
    return (uint64_t)((energy_at(view, view->now) - energy_at(view, start) + span / 2) / span);
}

const struct fault *find_fault(const struct fault *faults, unsigned count, uint32_t kind, uint32_t groups,
                               uint64_t now) {
    for (unsigned i = 0; i < count; i++) {
        const struct fault *fault = &faults[i];
        if (fault->kind == kind && (fault->groups & groups) != 0 && fault->from_ns <= now && now < fault->until_ns) {
            return fault;
        }
    }
    return NULL;
}

void touch(struct change *change, unsigned index) {
    update(&change->state->cards[index], change->file->rings[index], 0, RING - 1, change->now);
}

enum outcome apply_limit(struct change *change, unsigned index, uint32_t limit_mw) {
    struct card *card = &change->state->cards[index];
    const struct profile *profile = find_profile(card->profile);
    if (limit_mw < profile->min_mw || limit_mw > profile->max_mw) {
        return OUT_OF_RANGE;
    }
    card->limit_mw = limit_mw;
    touch(change, index);
    return DONE;
}

/* A descriptor with a lock of its own: flock belongs to the open file, which forked children would share. */
static int open_for_lock(const struct mapping *mapping) {
    char own[64];
    snprintf(own, sizeof own, "/proc/self/fd/%d", mapping->descriptor);
    int descriptor = open(own, O_RDWR | O_CLOEXEC);
    return descriptor >= 0 ? descriptor : open(mapping->path, O_RDWR | O_CLOEXEC);
}

enum outcome transact(const struct mapping *mapping, enum outcome (*apply)(struct change *), void *argument) {
    if (!mapping->writable) {
        return NOT_WRITABLE;
    }
    int descriptor = open_for_lock(mapping);
    if (descriptor < 0) {
        return SYSTEM;
    }
    while (flock(descriptor, LOCK_EX) != 0) {
        if (errno != EINTR) {
            close(descriptor);
            return SYSTEM;
        }
    }
    struct simgpu_file *file = mapping->file;
    enum outcome outcome = DONE;
    for (int attempt = 0; attempt < 100; attempt++) {
        uint64_t generation = atomic_load_explicit(&file->generation, memory_order_acquire);
        const struct state *current = &file->slots[generation & 1];
        struct state *next = &file->slots[(generation + 1) & 1];
        /* A reader that still copies this slot must see the generation that made it the other one. */
        atomic_thread_fence(memory_order_seq_cst);
        memcpy(next, current, offsetof(struct state, cards) + current->common.card_count * sizeof(struct card));
        struct change change = {.state = next, .file = file, .argument = argument};
        change.now = next->common.is_virtual ? next->common.virtual_ns : machine_clock();
        for (unsigned i = 0; i < next->common.card_count; i++) {
            settle(&next->cards[i], file->rings[i], 0, RING - 1, change.now);
        }
        outcome = apply(&change);
        if (outcome != DONE) {
            break;
        }
        if (next->common.is_virtual || machine_clock() - change.now < COUNTER_DELAY / 2) {
            atomic_store_explicit(&file->generation, generation + 1, memory_order_release);
            break;
        }
        outcome = SYSTEM; /* a hundred times too slow for the clock: nothing is changed */
    }
    close(descriptor); /* and so the lock */
    return outcome;
}
