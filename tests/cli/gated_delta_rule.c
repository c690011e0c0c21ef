/* A candidate for `refengine verify --exec`: Gated DeltaNet in float32, from safetensors to safetensors. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *file;
static uint64_t header;

/* The first number of a tensor's data, and its shape; the header is JSON, and its names are known. */
static const float *tensor(const char *name, long shape[4]) {
    char key[64];
    snprintf(key, sizeof key, "\"%s\":{", name);
    char *at = strstr(file + 8, key);
    if (!at) { fprintf(stderr, "no tensor %s\n", name); exit(3); }
    char *s = strchr(strstr(at, "\"shape\""), '[');
    for (int i = 0; i < 4 && *s != ']'; i++) shape[i] = strtol(s + 1, &s, 10);
    return (const float *)(file + 8 + header + strtol(strchr(strstr(at, "\"data_offsets\""), '[') + 1, NULL, 10));
}

int main(int argc, char **argv) {
    FILE *in = fopen(argv[1], "rb");
    fseek(in, 0, SEEK_END);
    long size = ftell(in);
    rewind(in);
    file = calloc(1, size + 1);
    if (fread(file, 1, size, in) != (size_t)size) return 4;
    memcpy(&header, file, 8);
    long n[4], m[4];
    const float *k = tensor("k", n), *q = tensor("q", n), *v = tensor("v", m), *g = tensor("g", m), *beta = tensor("beta", m);
    v = tensor("v", m);
    long B = n[0], T = n[1], H = n[2], K = n[3], HV = m[2], V = m[3], r = HV / H;
    float *o = calloc(B * T * HV * V, 4), *S = calloc(B * HV * K * V, 4), scale = 1 / sqrtf((float)K);
    for (long b = 0; b < B; b++)
        for (long h = 0; h < HV; h++)
            for (long t = 0; t < T; t++) {
                const float *kt = k + ((b * T + t) * H + h / r) * K, *qt = q + ((b * T + t) * H + h / r) * K;
                const float *vt = v + ((b * T + t) * HV + h) * V;
                float a = expf(g[(b * T + t) * HV + h]), bt = beta[(b * T + t) * HV + h];
                for (long j = 0; j < V; j++) {
                    float *s = S + ((b * HV + h) * K) * V + j, p = 0, out = 0;
                    for (long i = 0; i < K; i++) { s[i * V] *= DECAY_FIRST ? a : 1; p += kt[i] * s[i * V]; }
                    for (long i = 0; i < K; i++) {
                        s[i * V] = (DECAY_FIRST ? 1 : a) * s[i * V] + kt[i] * bt * (vt[j] - p);
                        out += qt[i] * s[i * V];
                    }
                    o[((b * T + t) * HV + h) * V + j] = scale * out;
                }
            }
    char text[400];
    int length = snprintf(text, sizeof text,
        "{\"o\":{\"dtype\":\"F32\",\"shape\":[%ld,%ld,%ld,%ld],\"data_offsets\":[0,%ld]},"
        "\"final_state\":{\"dtype\":\"F32\",\"shape\":[%ld,%ld,%ld,%ld],\"data_offsets\":[%ld,%ld]}}",
        B, T, HV, V, 4 * B * T * HV * V, B, HV, K, V, 4 * B * T * HV * V, 4 * B * HV * V * (T + K));
    header = length;
    FILE *out = fopen(argv[2], "wb");
    fwrite(&header, 8, 1, out);
    fwrite(text, 1, length, out);
    fwrite(o, 4, B * T * HV * V, out);
    fwrite(S, 4, B * HV * K * V, out);
    return fclose(out);
}
