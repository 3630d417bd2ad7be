/* A small nvidia-smi: some tools take its presence for that of a driver, and a person wants to look.
 *
 * It is an NVML program like any other: what it shows and sets goes through libnvidia-ml.so.1 beside it. */
#include "nvml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int nvmlInit_v2(void);
int nvmlShutdown(void);
const char *nvmlErrorString(int code);
int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice *device);
int nvmlDeviceGetName(nvmlDevice device, char *name, unsigned length);
int nvmlDeviceGetUUID(nvmlDevice device, char *uuid, unsigned length);
int nvmlDeviceGetPowerUsage(nvmlDevice device, unsigned *milliwatts);
int nvmlDeviceGetEnforcedPowerLimit(nvmlDevice device, unsigned *milliwatts);
int nvmlDeviceGetTemperature(nvmlDevice device, unsigned sensor, unsigned *temperature);
int nvmlDeviceGetClockInfo(nvmlDevice device, unsigned type, unsigned *clock);
int nvmlDeviceGetUtilizationRates(nvmlDevice device, struct nvmlUtilization *rates);
int nvmlDeviceSetPowerManagementLimit(nvmlDevice device, unsigned milliwatts);

static int fail(const char *what, int code) {
    fprintf(stderr, "%s: %s\n", what, nvmlErrorString(code));
    return code == NVML_SUCCESS ? EXIT_FAILURE : code & 0xFF;
}

/* One card's line; a number that could not be read is shown as it is known: not at all. */
static void show(unsigned index, nvmlDevice device, int with_uuid) {
    char name[96] = "?", uuid[96] = "?";
    nvmlDeviceGetName(device, name, sizeof name);
    nvmlDeviceGetUUID(device, uuid, sizeof uuid);
    if (with_uuid) {
        printf("GPU %u: %s (UUID: %s)\n", index, name, uuid);
        return;
    }
    unsigned draw = 0, limit = 0, temperature = 0, clock = 0;
    struct nvmlUtilization rates = {0, 0};
    int known = nvmlDeviceGetPowerUsage(device, &draw) == NVML_SUCCESS;
    nvmlDeviceGetEnforcedPowerLimit(device, &limit);
    nvmlDeviceGetTemperature(device, 0, &temperature);
    nvmlDeviceGetClockInfo(device, CLOCK_SM, &clock);
    nvmlDeviceGetUtilizationRates(device, &rates);
    printf("%2u  %-24s %3uC ", index, name, temperature);
    known ? printf("%6.1fW", draw / 1000.0) : printf("    N/A");
    printf(" / %6.1fW  %4u MHz  %3u%%\n", limit / 1000.0, clock, rates.gpu);
}

int main(int count, char **words) {
    int with_uuid = 0, chosen = -1;
    double watts = -1;
    for (int i = 1; i < count; i++) {
        if (strcmp(words[i], "-h") == 0 || strcmp(words[i], "--help") == 0) {
            puts("nvidia-smi [-L] [-i INDEX] [-pl WATTS]   simulated cards; -pl needs root");
            return EXIT_SUCCESS;
        }
        if (strcmp(words[i], "-L") == 0 || strcmp(words[i], "--list-gpus") == 0) {
            with_uuid = 1;
        } else if (strcmp(words[i], "-i") == 0 && i + 1 < count) {
            chosen = atoi(words[++i]);
        } else if (strcmp(words[i], "-pl") == 0 && i + 1 < count) {
            watts = atof(words[++i]);
        } else {
            fprintf(stderr, "%s is not known here; see --help\n", words[i]);
            return EXIT_FAILURE;
        }
    }
    unsigned cards = 0;
    int code = nvmlInit_v2();
    if (code == NVML_SUCCESS) {
        code = nvmlDeviceGetCount_v2(&cards);
    }
    if (code != NVML_SUCCESS) {
        return fail("NVML could not be initialised", code);
    }
    for (unsigned index = 0; index < cards; index++) {
        nvmlDevice device;
        if (chosen >= 0 && index != (unsigned)chosen) {
            continue;
        }
        code = nvmlDeviceGetHandleByIndex_v2(index, &device);
        if (code == NVML_SUCCESS && watts >= 0) {
            code = nvmlDeviceSetPowerManagementLimit(device, (unsigned)(watts * 1000 + 0.5));
        }
        if (code != NVML_SUCCESS) {
            return fail(watts >= 0 ? "the limit was not set" : "the card could not be reached", code);
        }
        show(index, device, with_uuid);
    }
    return nvmlShutdown() == NVML_SUCCESS ? EXIT_SUCCESS : EXIT_FAILURE;
}
