/* libnvidia-ml.so.1 of the simulated cards: NVML's functions over the shared state.
 *
 * A function that is not here is not exported, so callers meet what they meet on an old driver. */
#define _GNU_SOURCE
#include "call.h"
#include "physics.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char DRIVER_VERSION[] = "580.95.05";
static const char NVML_VERSION[] = "13.580.95.05";
enum { CUDA_VERSION = 13000 };

static int put(char *buffer, unsigned size, const char *text) {
    NEED(buffer != NULL);
    if (strlen(text) + 1 > size) {
        return NVML_INSUFFICIENT_SIZE;
    }
    strcpy(buffer, text);
    return NVML_SUCCESS;
}

/* --- Library */

EXPORT const char *nvmlErrorString(int code) {
    static const struct {
        int code;
        const char *text;
    } texts[] = {{0, "Success"},
                 {1, "Uninitialized"},
                 {2, "Invalid Argument"},
                 {3, "Not Supported"},
                 {4, "Insufficient Permissions"},
                 {6, "Not Found"},
                 {7, "Insufficient Size"},
                 {8, "Insufficient External Power"},
                 {9, "Driver Not Loaded"},
                 {10, "Timeout"},
                 {11, "Interrupt Request Issue"},
                 {12, "NVML Shared Library Not Found"},
                 {13, "Function Not Found"},
                 {14, "Corrupted infoROM"},
                 {15, "GPU is lost"},
                 {16, "GPU requires reset"},
                 {17, "GPU access blocked by the operating system"},
                 {18, "Driver/library version mismatch"},
                 {19, "In use by another client"},
                 {20, "Insufficient Memory"},
                 {21, "No data"},
                 {25, "Argument version mismatch"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (texts[i].code == code) {
            return texts[i].text;
        }
    }
    return "Unknown Error";
}

static int library_text(char *buffer, unsigned size, const char *text) {
    CALL;
    TRY(enter_index(&call, LIBRARY, GROUP_OTHER));
    return put(buffer, size, text);
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return library_text(version, length, DRIVER_VERSION);
}
EXPORT int nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    return library_text(version, length, NVML_VERSION);
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *version) {
    CALL;
    TRY(enter_index(&call, LIBRARY, GROUP_OTHER));
    NEED(version != NULL);
    *version = CUDA_VERSION;
    return NVML_SUCCESS;
}
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

/* --- Finding cards */

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    CALL;
    TRY(enter_index(&call, LIBRARY, GROUP_IDENTITY));
    NEED(count != NULL);
    *count = call.view.common.card_count;
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice *device) {
    CALL;
    TRY(enter_index(&call, index < MAX_CARDS ? index : LIBRARY, GROUP_IDENTITY));
    NEED(index < call.view.common.card_count && device != NULL);
    *device = &handles[index][0];
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static void write_bus_id(char *text, size_t size, unsigned index, unsigned digits) {
    snprintf(text, size, "%0*X:%02X:00.0", (int)digits, 0u, 7 + 15 * index);
}

/* The first handle for which `matches` says yes; each card is entered, so that its faults count. */
static int search(const char *wanted, bool (*matches)(const struct view *, const struct instance *, const char *),
                  nvmlDevice *device) {
    unsigned count = 0;
    TRY(nvmlDeviceGetCount_v2(&count));
    NEED(wanted != NULL && device != NULL);
    for (unsigned index = 0; index < count; index++) {
        CALL;
        int code = enter_index(&call, index, GROUP_IDENTITY);
        for (unsigned i = 0; i <= call.view.card.instance_count; i++) {
            if (matches(&call.view, i == 0 ? NULL : &call.view.card.instances[i - 1], wanted)) {
                TRY(code);
                *device = &handles[index][i];
                return NVML_SUCCESS;
            }
        }
    }
    return NVML_NOT_FOUND;
}

static bool has_uuid(const struct view *view, const struct instance *instance, const char *wanted) {
    return strcmp(instance == NULL ? view->card.uuid : instance->uuid, wanted) == 0;
}
static bool has_serial(const struct view *view, const struct instance *instance, const char *wanted) {
    return instance == NULL && strcmp(view->card.serial, wanted) == 0;
}
static bool has_bus_id(const struct view *view, const struct instance *instance, const char *wanted) {
    char full[32], legacy[32];
    write_bus_id(full, sizeof full, view->index, 8);
    write_bus_id(legacy, sizeof legacy, view->index, 4);
    return instance == NULL && (strcasecmp(full, wanted) == 0 || strcasecmp(legacy, wanted) == 0);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice *device) { return search(uuid, has_uuid, device); }
EXPORT int nvmlDeviceGetHandleByUUIDV(const struct nvmlUuid *uuid, nvmlDevice *device) {
    NEED(uuid != NULL && uuid->type == UUID_ASCII && memchr(uuid->value, '\0', sizeof uuid->value) != NULL);
    return search(uuid->value, has_uuid, device);
}
EXPORT int nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice *device) {
    return search(serial, has_serial, device);
}
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice *device) {
    return search(bus_id, has_bus_id, device);
}
EXPORT int nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice *device) {
    return search(bus_id, has_bus_id, device);
}

/* --- Identity */

EXPORT int nvmlDeviceGetName(nvmlDevice device, char *name, unsigned length) {
    ENTER(device, GROUP_IDENTITY | ON_INSTANCES);
    char text[96];
    snprintf(text, sizeof text, call.instance == NULL ? "%s" : "%s MIG %s", call.profile->name,
             call.instance == NULL ? "" : call.instance->profile);
    return put(name, length, text);
}

EXPORT int nvmlDeviceGetUUID(nvmlDevice device, char *uuid, unsigned length) {
    ENTER(device, GROUP_IDENTITY | ON_INSTANCES);
    return put(uuid, length, call.instance == NULL ? call.view.card.uuid : call.instance->uuid);
}

EXPORT int nvmlDeviceGetSerial(nvmlDevice device, char *serial, unsigned length) {
    ENTER(device, GROUP_IDENTITY);
    return put(serial, length, call.view.card.serial);
}

EXPORT int nvmlDeviceGetVbiosVersion(nvmlDevice device, char *version, unsigned length) {
    ENTER(device, GROUP_IDENTITY);
    return put(version, length, "00.00.00.00.01");
}

EXPORT int nvmlDeviceGetPciInfo_v3(nvmlDevice device, struct nvmlPciInfo *info) {
    ENTER(device, GROUP_IDENTITY);
    NEED(info != NULL);
    *info = (struct nvmlPciInfo){.bus = 7 + 15 * call.view.index, .pciDeviceId = call.profile->pci_device};
    write_bus_id(info->busIdLegacy, sizeof info->busIdLegacy, call.view.index, 4);
    write_bus_id(info->busId, sizeof info->busId, call.view.index, 8);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetPciInfoExt(nvmlDevice device, struct nvmlPciInfoExt *info) {
    ENTER(device, GROUP_IDENTITY);
    NEED(info != NULL);
    TRY(info->version == PCI_INFO_EXT_V1 ? NVML_SUCCESS : NVML_ARGUMENT_VERSION_MISMATCH);
    *info = (struct nvmlPciInfoExt){.version = PCI_INFO_EXT_V1,
                                    .bus = 7 + 15 * call.view.index,
                                    .pciDeviceId = call.profile->pci_device,
                                    .baseClass = 3,
                                    .subClass = 2};
    write_bus_id(info->busId, sizeof info->busId, call.view.index, 8);
    return NVML_SUCCESS;
}

GETTER(nvmlDeviceGetIndex, GROUP_IDENTITY, unsigned, call.view.index)
GETTER(nvmlDeviceGetMinorNumber, GROUP_IDENTITY, unsigned, call.view.index)
GETTER(nvmlDeviceGetBoardId, GROUP_IDENTITY, unsigned, 0x700 + call.view.index * 0xF00)
GETTER(nvmlDeviceGetMultiGpuBoard, GROUP_IDENTITY, unsigned, 0)
GETTER(nvmlDeviceGetBrand, GROUP_IDENTITY, unsigned, profile->brand)
GETTER(nvmlDeviceGetArchitecture, GROUP_IDENTITY | ON_INSTANCES, unsigned, profile->architecture)
GETTER(nvmlDeviceGetNumGpuCores, GROUP_IDENTITY, unsigned, profile->cores)
GETTER(nvmlDeviceGetMemoryBusWidth, GROUP_IDENTITY, unsigned, profile->bus_width)
GETTER(nvmlDeviceGetBusType, GROUP_IDENTITY, unsigned, BUS_PCIE)

EXPORT int nvmlDeviceGetCudaComputeCapability(nvmlDevice device, int *major, int *minor) {
    ENTER(device, GROUP_IDENTITY | ON_INSTANCES);
    NEED(major != NULL && minor != NULL);
    *major = (int)call.profile->capability_major;
    *minor = (int)call.profile->capability_minor;
    return NVML_SUCCESS;
}

/* --- Energy and power */

/* The sum of what SHIFTED faults add to the counter. */
static uint64_t sum_shifts(const struct fault *faults, unsigned count, uint64_t now) {
    uint64_t sum = 0;
    const struct fault *end = faults + count;
    while ((faults = find_fault(faults, (unsigned)(end - faults), FAULT_SHIFTED, GROUP_ENERGY, now)) != NULL) {
        sum += faults++->parameter;
    }
    return sum;
}

static int read_counter(const struct call *call, unsigned long long *millijoules) {
    const struct fault *stuck = meet(&call->view, FAULT_STUCK, GROUP_ENERGY);
    uint64_t shown = counter_at(&call->view, stuck != NULL ? stuck->from_ns : call->view.now);
    const struct fault *share = meet(&call->view, FAULT_SHARE, GROUP_ENERGY);
    if (share != NULL) {
        uint64_t begun = counter_at(&call->view, share->from_ns);
        shown = begun + (uint64_t)((unsigned __int128)(shown - begun) * share->parameter / 1000000);
    }
    const struct view *view = &call->view;
    *millijoules = shown + sum_shifts(view->common.faults, view->common.fault_count, view->now) +
                   sum_shifts(view->card.faults, view->card.fault_count, view->now);
    return NVML_SUCCESS;
}

static unsigned read_power(const struct call *call, bool average) {
    const struct fault *garbage = meet(&call->view, FAULT_GARBAGE, GROUP_POWER);
    if (garbage != NULL) {
        return (unsigned)garbage->parameter;
    }
    return average ? (unsigned)average_draw(&call->view) : call->view.card.draw_mw;
}

EXPORT int nvmlDeviceGetTotalEnergyConsumption(nvmlDevice device, unsigned long long *energy) {
    ENTER(device, GROUP_ENERGY);
    NEED(energy != NULL);
    return read_counter(&call, energy);
}

GETTER(nvmlDeviceGetPowerUsage, GROUP_POWER, unsigned, read_power(&call, profile->averages))
GETTER(nvmlDeviceGetPowerManagementMode, GROUP_LIMIT, unsigned, 1)
GETTER(nvmlDeviceGetPowerManagementLimit, GROUP_LIMIT, unsigned, card->limit_mw)
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, GROUP_LIMIT, unsigned, profile->default_mw)
GETTER(nvmlDeviceGetEnforcedPowerLimit, GROUP_LIMIT, unsigned, enforced_limit(card))
GETTER(nvmlDeviceGetPowerSource, GROUP_OTHER, unsigned, 0)

EXPORT int nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice device, unsigned *least, unsigned *most) {
    ENTER(device, GROUP_LIMIT);
    NEED(least != NULL && most != NULL);
    *least = call.profile->min_mw;
    *most = call.profile->max_mw;
    return NVML_SUCCESS;
}

struct setting {
    unsigned index;
    uint32_t value;
};

static enum outcome change_limit(struct change *change) {
    const struct setting *setting = change->argument;
    return apply_limit(change, setting->index, setting->value);
}

static enum outcome change_persistence(struct change *change) {
    const struct setting *setting = change->argument;
    change->state->cards[setting->index].persistence = setting->value;
    return DONE;
}

static enum outcome change_locked_clock(struct change *change) {
    const struct setting *setting = change->argument;
    change->state->cards[setting->index].locked_clock_mhz = setting->value;
    touch(change, setting->index);
    return DONE;
}

static int set(const struct call *call, enum outcome (*apply)(struct change *), uint32_t value) {
    if (geteuid() != 0) {
        return NVML_NO_PERMISSION;
    }
    struct setting setting = {call->view.index, value};
    switch (transact(&call->session->mapping, apply, &setting)) {
        case DONE: return NVML_SUCCESS;
        case OUT_OF_RANGE: return NVML_INVALID_ARGUMENT;
        case NOT_WRITABLE: return NVML_NO_PERMISSION;
        default: return NVML_UNKNOWN;
    }
}

EXPORT int nvmlDeviceSetPowerManagementLimit(nvmlDevice device, unsigned limit) {
    ENTER(device, GROUP_SET);
    return set(&call, change_limit, limit);
}

EXPORT int nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice device, const struct nvmlPowerValue *value) {
    ENTER(device, GROUP_SET);
    NEED(value != NULL);
    TRY(value->version == POWER_VALUE_V2 ? NVML_SUCCESS : NVML_ARGUMENT_VERSION_MISMATCH);
    TRY(value->powerScope == SCOPE_GPU ? NVML_SUCCESS : NVML_NOT_SUPPORTED);
    return set(&call, change_limit, value->powerValueMw);
}

GETTER(nvmlDeviceGetPersistenceMode, GROUP_OTHER, unsigned, card->persistence)

EXPORT int nvmlDeviceSetPersistenceMode(nvmlDevice device, unsigned mode) {
    ENTER(device, GROUP_SET);
    NEED(mode <= 1);
    return set(&call, change_persistence, mode);
}

static int read_field(const struct call *call, struct nvmlFieldValue *field) {
    const struct card *card = &call->view.card;
    const struct profile *profile = call->profile;
    bool is_power = field->fieldId >= FIELD_POWER_AVERAGE && field->fieldId <= FIELD_POWER_REQUESTED_LIMIT;
    unsigned group = field->fieldId == FIELD_TOTAL_ENERGY                                             ? GROUP_ENERGY
                     : field->fieldId == FIELD_POWER_AVERAGE || field->fieldId == FIELD_POWER_INSTANT ? GROUP_POWER
                     : is_power                                                                       ? GROUP_LIMIT
                                                                                                      : GROUP_OTHER;
    const struct fault *failure = meet(&call->view, FAULT_FAIL, group);
    if (failure != NULL) {
        return (int)failure->parameter;
    }
    if (is_power && field->scopeId != SCOPE_GPU) {
        return NVML_NOT_SUPPORTED;
    }
    field->valueType = VALUE_UNSIGNED_INT;
    switch (field->fieldId) {
        case FIELD_TOTAL_ENERGY:
            field->valueType = VALUE_UNSIGNED_LONG_LONG;
            return read_counter(call, &field->value.ullVal);
        case FIELD_POWER_AVERAGE:
            field->value.uiVal = read_power(call, true);
            return profile->averages ? NVML_SUCCESS : NVML_NOT_SUPPORTED;
        case FIELD_POWER_INSTANT: field->value.uiVal = read_power(call, false); return NVML_SUCCESS;
        case FIELD_POWER_MIN_LIMIT: field->value.uiVal = profile->min_mw; return NVML_SUCCESS;
        case FIELD_POWER_MAX_LIMIT: field->value.uiVal = profile->max_mw; return NVML_SUCCESS;
        case FIELD_POWER_DEFAULT_LIMIT: field->value.uiVal = profile->default_mw; return NVML_SUCCESS;
        case FIELD_POWER_CURRENT_LIMIT: field->value.uiVal = enforced_limit(card); return NVML_SUCCESS;
        case FIELD_POWER_REQUESTED_LIMIT: field->value.uiVal = card->limit_mw; return NVML_SUCCESS;
        case FIELD_ECC_CURRENT:
        case FIELD_ECC_PENDING: field->value.uiVal = 1; return NVML_SUCCESS;
        default: return NVML_NOT_SUPPORTED;
    }
}

EXPORT int nvmlDeviceGetFieldValues(nvmlDevice device, int count, struct nvmlFieldValue *values) {
    ENTER(device, GROUP_OTHER);
    NEED(count >= 1 && values != NULL);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        values[i].timestamp = (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        values[i].latencyUsec = 0;
        values[i].value.ullVal = 0;
        values[i].nvmlReturn = (unsigned)read_field(&call, &values[i]);
    }
    return NVML_SUCCESS;
}

/* --- Heat */

/* Plausible value: 30 degrees without a draw, 80 at the highest limit, at once. */
static int temperature_of(const struct call *call) {
    return 30 + (int)(50ull * call->view.card.draw_mw / call->profile->max_mw);
}

EXPORT int nvmlDeviceGetTemperature(nvmlDevice device, unsigned sensor, unsigned *temperature) {
    ENTER(device, GROUP_OTHER);
    NEED(sensor == 0 && temperature != NULL);
    *temperature = (unsigned)temperature_of(&call);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetTemperatureV(nvmlDevice device, struct nvmlTemperature *temperature) {
    ENTER(device, GROUP_OTHER);
    NEED(temperature != NULL && temperature->sensorType == 0);
    TRY(temperature->version == TEMPERATURE_V1 ? NVML_SUCCESS : NVML_ARGUMENT_VERSION_MISMATCH);
    temperature->temperature = temperature_of(&call);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetTemperatureThreshold(nvmlDevice device, unsigned threshold, unsigned *temperature) {
    static const unsigned degrees[] = {92, 89, 95, 85}; /* shutdown, slowdown, memory, GPU: plausible values */
    ENTER(device, GROUP_OTHER);
    NEED(temperature != NULL);
    TRY(threshold < sizeof degrees / sizeof *degrees ? NVML_SUCCESS : NVML_NOT_SUPPORTED);
    *temperature = degrees[threshold];
    return NVML_SUCCESS;
}

/* These modules have no fan of their own. */
UNSUPPORTED(nvmlDeviceGetFanSpeed, GROUP_OTHER, unsigned)
GETTER(nvmlDeviceGetNumFans, GROUP_OTHER, unsigned, 0)
EXPORT int nvmlDeviceGetFanSpeed_v2(nvmlDevice device, unsigned fan, unsigned *speed) {
    (void)fan;
    return nvmlDeviceGetFanSpeed(device, speed);
}

/* --- Clocks */

static int pick_clock(unsigned type, unsigned sm, const struct profile *profile, unsigned *clock) {
    NEED(clock != NULL && type <= CLOCK_VIDEO);
    *clock = type == CLOCK_MEM     ? profile->memory_mhz
             : type == CLOCK_VIDEO ? (unsigned)((uint64_t)sm * profile->video_mhz / profile->max_mhz)
                                   : sm;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetClockInfo(nvmlDevice device, unsigned type, unsigned *clock) {
    ENTER(device, GROUP_CLOCKS);
    return pick_clock(type, call.view.card.clock_mhz, call.profile, clock);
}

EXPORT int nvmlDeviceGetMaxClockInfo(nvmlDevice device, unsigned type, unsigned *clock) {
    ENTER(device, GROUP_CLOCKS);
    return pick_clock(type, call.profile->max_mhz, call.profile, clock);
}

EXPORT int nvmlDeviceGetApplicationsClock(nvmlDevice device, unsigned type, unsigned *clock) {
    ENTER(device, GROUP_CLOCKS);
    TRY(type == CLOCK_VIDEO ? NVML_NOT_SUPPORTED : NVML_SUCCESS);
    return pick_clock(type, call.profile->application_mhz, call.profile, clock);
}

EXPORT int nvmlDeviceGetDefaultApplicationsClock(nvmlDevice device, unsigned type, unsigned *clock) {
    return nvmlDeviceGetApplicationsClock(device, type, clock);
}

EXPORT int nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice device, unsigned type, unsigned *clock) {
    return nvmlDeviceGetMaxClockInfo(device, type, clock);
}

EXPORT int nvmlDeviceGetClock(nvmlDevice device, unsigned type, unsigned id, unsigned *clock) {
    switch (id) {
        case CLOCK_ID_CURRENT: return nvmlDeviceGetClockInfo(device, type, clock);
        case CLOCK_ID_TARGET:
        case CLOCK_ID_DEFAULT: return nvmlDeviceGetApplicationsClock(device, type, clock);
        case CLOCK_ID_BOOST_MAX: return nvmlDeviceGetMaxClockInfo(device, type, clock);
        default: return NVML_INVALID_ARGUMENT;
    }
}

/* How NVML returns lists: the count alone when there is no or too little room. */
static int room(unsigned *count, unsigned needed, const void *array) {
    NEED(count != NULL);
    unsigned given = array == NULL ? 0 : *count;
    *count = needed;
    return given < needed ? NVML_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetSupportedMemoryClocks(nvmlDevice device, unsigned *count, unsigned *clocks) {
    ENTER(device, GROUP_CLOCKS);
    TRY(room(count, 1, clocks));
    clocks[0] = call.profile->memory_mhz;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice device, unsigned memory_mhz, unsigned *count,
                                                unsigned *clocks) {
    ENTER(device, GROUP_CLOCKS);
    TRY(memory_mhz == call.profile->memory_mhz ? NVML_SUCCESS : NVML_NOT_FOUND);
    unsigned steps = (call.profile->max_mhz - call.profile->min_mhz) / CLOCK_STEP_MHZ + 1;
    TRY(room(count, steps, clocks));
    for (unsigned i = 0; i < steps; i++) {
        clocks[i] = call.profile->max_mhz - i * CLOCK_STEP_MHZ;
    }
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceSetGpuLockedClocks(nvmlDevice device, unsigned least, unsigned most) {
    ENTER(device, GROUP_SET);
    NEED(least <= most && most >= call.profile->min_mhz);
    unsigned top = most < call.profile->max_mhz ? most : call.profile->max_mhz;
    return set(&call, change_locked_clock, top - top % CLOCK_STEP_MHZ);
}

EXPORT int nvmlDeviceResetGpuLockedClocks(nvmlDevice device) {
    ENTER(device, GROUP_SET);
    return set(&call, change_locked_clock, 0);
}

GETTER(nvmlDeviceGetCurrentClocksEventReasons, GROUP_CLOCKS, unsigned long long, card->reasons)
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, GROUP_CLOCKS, unsigned long long, card->reasons)
GETTER(nvmlDeviceGetSupportedClocksEventReasons, GROUP_CLOCKS, unsigned long long, 0x1FF)
GETTER(nvmlDeviceGetSupportedClocksThrottleReasons, GROUP_CLOCKS, unsigned long long, 0x1FF)
GETTER(nvmlDeviceGetPerformanceState, GROUP_CLOCKS, unsigned, 0) /* the printed cards above idle in P0 too */
GETTER(nvmlDeviceGetPowerState, GROUP_CLOCKS, unsigned, 0)

/* --- Use */

EXPORT int nvmlDeviceGetUtilizationRates(nvmlDevice device, struct nvmlUtilization *rates) {
    ENTER(device, GROUP_UTILIZATION);
    NEED(rates != NULL);
    TRY(call.view.card.mig ? NVML_NOT_SUPPORTED : NVML_SUCCESS);
    unsigned percent = (call.view.card.load_ppm + 9999) / 10000;
    *rates = (struct nvmlUtilization){.gpu = percent, .memory = percent * 6 / 10}; /* memory's: plausible value */
    return NVML_SUCCESS;
}

static int read_codec(nvmlDevice device, unsigned *percent, unsigned *period) {
    ENTER(device, GROUP_UTILIZATION);
    NEED(percent != NULL && period != NULL);
    *percent = 0;
    *period = 167000;
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetEncoderUtilization(nvmlDevice device, unsigned *percent, unsigned *period) {
    return read_codec(device, percent, period);
}
EXPORT int nvmlDeviceGetDecoderUtilization(nvmlDevice device, unsigned *percent, unsigned *period) {
    return read_codec(device, percent, period);
}

static struct nvmlMemory_v2 memory_of(const struct call *call) {
    const struct card *card = &call->view.card;
    uint64_t total = (uint64_t)call->profile->memory_mib << 20;
    uint64_t reserved = (uint64_t)call->profile->reserved_mib << 20;
    uint64_t used = card->memory_bytes;
    if (call->instance != NULL) {
        total = (uint64_t)call->instance->memory_mib << 20;
        reserved = used = 0;
        for (unsigned i = 0; i < card->process_count; i++) {
            if (card->processes[i].instance == (unsigned)(call->instance - card->instances)) {
                used += card->processes[i].memory_bytes;
            }
        }
    }
    uint64_t available = total - reserved;
    used = used < available ? used : available;
    return (struct nvmlMemory_v2){
        .version = MEMORY_V2, .total = total, .reserved = reserved, .free = available - used, .used = used};
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(nvmlDevice device, struct nvmlMemory_v2 *memory) {
    ENTER(device, GROUP_MEMORY | ON_INSTANCES);
    NEED(memory != NULL);
    TRY(memory->version == MEMORY_V2 ? NVML_SUCCESS : NVML_ARGUMENT_VERSION_MISMATCH);
    *memory = memory_of(&call);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo(nvmlDevice device, struct nvmlMemory *memory) {
    ENTER(device, GROUP_MEMORY | ON_INSTANCES);
    NEED(memory != NULL);
    struct nvmlMemory_v2 all = memory_of(&call);
    /* The first version knows no reserved memory and counts it as used. */
    *memory = (struct nvmlMemory){.total = all.total, .free = all.free, .used = all.used + all.reserved};
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetBAR1MemoryInfo(nvmlDevice device, struct nvmlBar1Memory *memory) {
    ENTER(device, GROUP_MEMORY);
    NEED(memory != NULL);
    unsigned long long total = (unsigned long long)call.profile->memory_mib << 20;
    *memory = (struct nvmlBar1Memory){.total = total, .free = total};
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice device, unsigned *count,
                                                   struct nvmlProcessInfo *infos) {
    ENTER(device, GROUP_PROCESSES | ON_INSTANCES);
    NEED(count != NULL);
    const struct card *card = &call.view.card;
    struct nvmlProcessInfo found[MAX_PROCESSES];
    unsigned length = 0;
    for (unsigned i = 0; i < card->process_count; i++) {
        const struct card_process *process = &card->processes[i];
        const struct instance *instance =
            process->instance < card->instance_count ? &card->instances[process->instance] : NULL;
        if (call.instance == NULL || call.instance == instance) {
            unsigned id = instance == NULL ? NOT_AVAILABLE : instance->gpu_instance_id;
            found[length++] = (struct nvmlProcessInfo){process->pid, process->memory_bytes, id,
                                                       instance == NULL ? NOT_AVAILABLE : 0};
        }
    }
    TRY(room(count, length, infos));
    if (length > 0) {
        memcpy(infos, found, length * sizeof *infos);
    }
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice device, unsigned *count,
                                                   struct nvmlProcessInfo *infos) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, infos);
}

static int no_processes(nvmlDevice device, unsigned *count) {
    ENTER(device, GROUP_PROCESSES | ON_INSTANCES);
    NEED(count != NULL);
    *count = 0;
    return NVML_SUCCESS;
}
#define NO_PROCESSES(function)                                                               \
    EXPORT int function(nvmlDevice device, unsigned *count, struct nvmlProcessInfo *infos) { \
        (void)infos;                                                                         \
        return no_processes(device, count);                                                  \
    }
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)

/* --- The rest that tools ask for */

GETTER(nvmlDeviceGetComputeMode, GROUP_OTHER, unsigned, 0)
GETTER(nvmlDeviceGetDisplayMode, GROUP_OTHER, unsigned, 0)
GETTER(nvmlDeviceGetDisplayActive, GROUP_OTHER, unsigned, 0)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, GROUP_OTHER, unsigned,
       profile->architecture >= 9   ? 5
       : profile->architecture >= 7 ? 4
                                    : 3)
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, GROUP_OTHER, unsigned,
       profile->architecture >= 9   ? 5
       : profile->architecture >= 7 ? 4
                                    : 3)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, GROUP_OTHER, unsigned, 16)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, GROUP_OTHER, unsigned, 16)
UNSUPPORTED(nvmlDeviceGetC2cModeInfoV, GROUP_OTHER, unsigned) /* no card here is joined to a Grace CPU */

EXPORT int nvmlDeviceGetEccMode(nvmlDevice device, unsigned *current, unsigned *pending) {
    ENTER(device, GROUP_OTHER);
    NEED(current != NULL && pending != NULL);
    *current = *pending = 1;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetTotalEccErrors(nvmlDevice device, unsigned type, unsigned counter,
                                       unsigned long long *count) {
    ENTER(device, GROUP_OTHER);
    NEED(type <= 1 && counter <= 1 && count != NULL);
    *count = 0;
    return NVML_SUCCESS;
}

/* --- MIG */

EXPORT int nvmlDeviceGetMigMode(nvmlDevice device, unsigned *current, unsigned *pending) {
    ENTER(device, GROUP_MIG);
    NEED(current != NULL && pending != NULL);
    TRY(find_slice_profile(call.profile->key, NULL) != NULL ? NVML_SUCCESS : NVML_NOT_SUPPORTED);
    *current = *pending = call.view.card.mig;
    return NVML_SUCCESS;
}

GETTER(nvmlDeviceGetMaxMigDeviceCount, GROUP_MIG, unsigned, card->mig ? MAX_INSTANCES : 0)
GETTER(nvmlDeviceIsMigDeviceHandle, GROUP_MIG | ON_INSTANCES, unsigned, call.instance != NULL)

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice device, unsigned index, nvmlDevice *instance) {
    ENTER(device, GROUP_MIG);
    NEED(instance != NULL && index < MAX_INSTANCES);
    TRY(!call.view.card.mig                     ? NVML_NOT_SUPPORTED
        : index < call.view.card.instance_count ? NVML_SUCCESS
                                                : NVML_NOT_FOUND);
    *instance = &handles[call.view.index][1 + index];
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice instance, nvmlDevice *device) {
    ENTER(instance, GROUP_MIG | ON_INSTANCES);
    NEED(device != NULL && call.instance != NULL);
    *device = &handles[call.view.index][0];
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetGpuInstanceId(nvmlDevice device, unsigned *id) {
    ENTER(device, GROUP_MIG | ON_INSTANCES);
    NEED(id != NULL);
    TRY(call.instance == NULL ? NVML_NOT_SUPPORTED : NVML_SUCCESS);
    *id = call.instance->gpu_instance_id;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetComputeInstanceId(nvmlDevice device, unsigned *id) {
    TRY(nvmlDeviceGetGpuInstanceId(device, id));
    *id = 0;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetAttributes_v2(nvmlDevice device, struct nvmlDeviceAttributes *attributes) {
    ENTER(device, GROUP_MIG | ON_INSTANCES);
    NEED(attributes != NULL);
    TRY(call.instance == NULL ? NVML_NOT_SUPPORTED : NVML_SUCCESS);
    unsigned slices = call.instance->slices;
    *attributes = (struct nvmlDeviceAttributes){.multiprocessorCount = call.instance->multiprocessors,
                                                .sharedCopyEngineCount = slices,
                                                .gpuInstanceSliceCount = slices,
                                                .computeInstanceSliceCount = slices,
                                                .memorySizeMB = call.instance->memory_mib};
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetAttributes(nvmlDevice device, struct nvmlDeviceAttributes *attributes) {
    return nvmlDeviceGetAttributes_v2(device, attributes);
}
