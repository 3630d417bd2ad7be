/* The part of NVML's binary interface that nvml.c answers: codes, enumerations and structs as programs pass them.
 *
 * Layouts are NVIDIA's published ABI; tests/contract/simgpu compares each with nvidia-ml-py's own definition. */
#ifndef SIMGPU_NVML_H
#define SIMGPU_NVML_H

#include <stdint.h>

enum {
    NVML_SUCCESS = 0,
    NVML_UNINITIALIZED = 1,
    NVML_INVALID_ARGUMENT = 2,
    NVML_NOT_SUPPORTED = 3,
    NVML_NO_PERMISSION = 4,
    NVML_NOT_FOUND = 6,
    NVML_INSUFFICIENT_SIZE = 7,
    NVML_DRIVER_NOT_LOADED = 9,
    NVML_TIMEOUT = 10,
    NVML_GPU_IS_LOST = 15,
    NVML_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_UNKNOWN = 999,
};

enum { CLOCK_GRAPHICS, CLOCK_SM, CLOCK_MEM, CLOCK_VIDEO };
enum { CLOCK_ID_CURRENT, CLOCK_ID_TARGET, CLOCK_ID_DEFAULT, CLOCK_ID_BOOST_MAX };
enum { SCOPE_GPU, SCOPE_MODULE, SCOPE_MEMORY };
enum { VALUE_UNSIGNED_INT = 1, VALUE_UNSIGNED_LONG_LONG = 3 };
enum { UUID_ASCII = 1 };
enum { BUS_PCIE = 2 };

enum {
    FIELD_ECC_CURRENT = 1,
    FIELD_ECC_PENDING = 2,
    FIELD_TOTAL_ENERGY = 83,
    FIELD_POWER_AVERAGE = 185,
    FIELD_POWER_INSTANT = 186,
    FIELD_POWER_MIN_LIMIT = 187,
    FIELD_POWER_MAX_LIMIT = 188,
    FIELD_POWER_DEFAULT_LIMIT = 189,
    FIELD_POWER_CURRENT_LIMIT = 190,
    FIELD_POWER_REQUESTED_LIMIT = 192,
};

#define NOT_AVAILABLE UINT32_MAX

typedef struct handle *nvmlDevice;

struct nvmlPciInfo {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
};

struct nvmlPciInfoExt {
    unsigned version, domain, bus, device, pciDeviceId, pciSubSystemId, baseClass, subClass;
    char busId[32];
};
#define PCI_INFO_EXT_V1 0x1000040u

struct nvmlUtilization {
    unsigned gpu, memory;
};

struct nvmlMemory {
    unsigned long long total, free, used;
};

struct nvmlMemory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};
#define MEMORY_V2 0x2000028u

struct nvmlBar1Memory {
    unsigned long long total, free, used;
};

struct nvmlProcessInfo {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId, computeInstanceId;
};

struct nvmlTemperature {
    unsigned version, sensorType;
    int temperature;
};
#define TEMPERATURE_V1 0x100000Cu

struct nvmlPowerValue {
    unsigned version, powerScope, powerValueMw;
};
#define POWER_VALUE_V2 0x200000Cu

struct nvmlUuid {
    unsigned version, type;
    char value[41];
};

union nvmlValue {
    double dVal;
    unsigned uiVal;
    unsigned long long ullVal;
};

struct nvmlFieldValue {
    unsigned fieldId, scopeId;
    long long timestamp, latencyUsec;
    unsigned valueType, nvmlReturn;
    union nvmlValue value;
};

struct nvmlDeviceAttributes {
    unsigned multiprocessorCount, sharedCopyEngineCount, sharedDecoderCount, sharedEncoderCount, sharedJpegCount,
        sharedOfaCount, gpuInstanceSliceCount, computeInstanceSliceCount;
    unsigned long long memorySizeMB;
};

#endif
