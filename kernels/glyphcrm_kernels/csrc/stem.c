/* The glyph stem on a CPU, float32, NHWC: see stem/cpu.py, the only caller.
 *
 * A 3x3 window of ink is one of 512 patterns, so the convolution of the picture is a row of a table
 * ``(512, channels)`` that holds the sum of the taps under each pattern's ink. Bit 8 - t of a pattern is the pixel
 * under tap t. The table's gradient collects the gradients of the pixels by pattern. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SIDE 48
#define PATTERNS 512

#include "results.h"

#define KERNELS "stem_kernels.h"
#include "each_instruction_set.h"

/* Row `row` of a packed image as a number whose bit 48 - j is pixel j, and 0 outside of the image. */
static uint64_t ink(const uint8_t *image, int row)
{
    uint64_t bits = 0;
    if (row < 0 || row >= SIDE)
        return 0;
    for (int i = 0; i < SIDE / 8; i++)
        bits = bits << 8 | image[row * (SIDE / 8) + i];
    return bits << 1;
}

/* The patterns around the pixels of two rows, ``(2, 48)``. */
static void find_patterns(const uint8_t *image, int row, uint16_t *patterns)
{
    const uint64_t rows[4] = {ink(image, row - 1), ink(image, row), ink(image, row + 1), ink(image, row + 2)};
    for (int i = 0; i < 2; i++)
        for (int column = 0; column < SIDE; column++) {
            const int shift = SIDE - 1 - column;
            patterns[i * SIDE + column] =
                (rows[i] >> shift & 7) << 6 | (rows[i + 1] >> shift & 7) << 3 | (rows[i + 2] >> shift & 7);
        }
}

/* Whether one of the wanted pictures is not in the atlas: 8 bytes an image, where drawing it moves 2,304 channels. */
static int has_outside(const int64_t *rows, int images, int atlas_rows)
{
    int found = 0;
    for (int i = 0; i < images; i++)
        found |= rows[i] < 0 || rows[i] >= atlas_rows;
    return found;
}

/* bitmaps ``(atlas_rows, 288)``, rows ``(images,)`` of it, table ``(512, channels)``, constant ``(48, 48, channels)``;
 * activation ``(images, 48, 48, channels)``, pooled ``(images, 24, 24, channels)``. Returns 0, or
 * BAD_INDEX where a row is not in [0, atlas_rows). */
int glyphcrm_stem_forward(
    int lanes, int threads, int images, int channels, int atlas_rows, const int64_t *rows, const uint8_t *bitmaps, const float *table,
    const float *constant, float *activation, float *pooled)
{
    if (has_outside(rows, images, atlas_rows))
        return BAD_INDEX;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < images; i++)
        for (int row = 0; row < SIDE; row += 2) {
            uint16_t patterns[2 * SIDE];
            const size_t at = (size_t)row * SIDE * channels;
            find_patterns(bitmaps + rows[i] * (SIDE * SIDE / 8), row, patterns);
            FOR_LANES(lanes, stem_rows)(
                patterns, channels, table, constant + at, activation + (size_t)i * SIDE * SIDE * channels + at,
                pooled + ((size_t)i * SIDE * SIDE / 4 + (size_t)row / 2 * (SIDE / 2)) * channels);
        }
    return 0;
}

/* The gradients of table and constant from those of activation and pooled, which are made again on the way. dtable
 * ``(24, 512, channels)`` holds those of each pair of rows, so that their sum does not depend on the number of threads.
 * Returns as above. */
int glyphcrm_stem_backward(
    int lanes, int threads, int images, int channels, int atlas_rows, const int64_t *rows, const uint8_t *bitmaps,
    const float *table, const float *constant, const float *dactivation, const float *dpooled, float *dtable,
    float *dconstant)
{
    if (has_outside(rows, images, atlas_rows))
        return BAD_INDEX;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int pair = 0; pair < SIDE / 2; pair++) {
        const size_t at = (size_t)pair * 2 * SIDE * channels;
        float *dtable_pair = dtable + (size_t)pair * PATTERNS * channels;
        memset(dtable_pair, 0, (size_t)PATTERNS * channels * sizeof(float));
        memset(dconstant + at, 0, (size_t)2 * SIDE * channels * sizeof(float));
        for (int i = 0; i < images; i++) {
            uint16_t patterns[2 * SIDE];
            const size_t image = (size_t)i * SIDE * SIDE * channels + at;
            find_patterns(bitmaps + rows[i] * (SIDE * SIDE / 8), 2 * pair, patterns);
            FOR_LANES(lanes, stem_rows_backward)(
                patterns, channels, table, constant + at, dactivation + image,
                dpooled + ((size_t)i * SIDE * SIDE / 4 + (size_t)pair * (SIDE / 2)) * channels, dtable_pair,
                dconstant + at);
        }
    }
    return 0;
}
