/* Valid convolution in the Fourier domain, float32, NHWC: see conv/cpu.py, the only caller.
 *
 * A plain C library without PyTorch's headers, so that building it needs a C compiler and nothing else. The arithmetic
 * is in fourier_kernels.h; here are memory, threads, and the order of things:
 *
 *     rows of a block of images -> row spectra[column frequency][image][row]              each image by itself
 *     columns -> products with the filters' spectra -> columns back                       each column frequency by itself
 *     row spectra -> rows                                                                 each image by itself
 *
 * A column frequency takes a few images at a time, so that the spectra that are multiplied stay in the cache. Every sum
 * has a fixed order, whatever the number of threads. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#define MOST_PASSES 16
#define CACHE_BYTES (384 << 10) /* of the spectra that a thread multiplies at once; half a core's second-level cache */

/* How a transform of length n is made of passes of radix 2 to 5. */
struct plan {
    int n, passes;
    int radices[MOST_PASSES];
    float *twiddles; /* cosine and sine of each factor, in the order of their use */
};

enum form { PLAIN, CONJUGATE, SUM_OVER_IMAGES };

#define KERNELS "fourier_kernels.h"
#include "each_instruction_set.h"

static int make_plan(struct plan *plan, int n)
{
    static const int radices[] = {4, 5, 3, 2};
    const double turn = -6.28318530717958647692;
    int rest = n, passes = 0, count = 0;
    for (int i = 0; i < 4; i++)
        for (; rest % radices[i] == 0 && passes < MOST_PASSES; rest /= radices[i])
            plan->radices[passes++] = radices[i];
    if (n < 2 || rest != 1)
        return -1;
    plan->n = n, plan->passes = passes;
    plan->twiddles = malloc(2 * (size_t)n * passes * sizeof(float));
    if (!plan->twiddles)
        return -1;
    for (int pass = 0, length = n; pass < passes; length /= plan->radices[pass++])
        for (int p = 0; p < length / plan->radices[pass]; p++)
            for (int k = 1; k < plan->radices[pass]; k++) {
                plan->twiddles[count++] = (float)cos(turn * p * k / length);
                plan->twiddles[count++] = (float)sin(turn * p * k / length);
            }
    return 0;
}

/* What all parts of a convolution share. */
struct work {
    struct plan plan;
    int lanes, threads;
    int columns;   /* frequencies n/2 + 1 */
    int few;       /* images that a thread multiplies at once */
    float *scratch; /* of each thread: a transform's, then spectra of `few` images for x and for y */
    size_t scratch_floats, spectrum_floats;
};

/* Floats between two frequencies of a column: not a power of two, whose lines would share one set of the cache. */
static size_t row_stride(int images, int channels) { return 2 * (size_t)images * channels + 16; }

static int begin(struct work *work, int lanes, int threads, int n, int channels)
{
    work->scratch = NULL;
    work->plan.twiddles = NULL;
    if (make_plan(&work->plan, n))
        return -1;
    work->lanes = lanes;
    work->threads = threads < 1 ? 1 : threads;
    work->columns = n / 2 + 1;
    work->few = CACHE_BYTES / (8 * n * channels);
    work->few = work->few < 4 ? 4 : work->few;
    work->spectrum_floats = n * row_stride(work->few, channels);
    work->scratch_floats = 4 * 16 * (size_t)n + 2 * work->spectrum_floats + 1024;
    work->scratch_floats = (work->scratch_floats + 15) / 16 * 16;
    work->scratch = aligned_alloc(64, work->scratch_floats * work->threads * sizeof(float));
    return work->scratch ? 0 : -1;
}

static void end(struct work *work)
{
    free(work->scratch);
    free(work->plan.twiddles);
}

static float *scratch_of_thread(const struct work *work)
{
#ifdef _OPENMP
    return work->scratch + work->scratch_floats * omp_get_thread_num();
#else
    return work->scratch;
#endif
}

static float *x_of_thread(const struct work *work) { return scratch_of_thread(work) + 4 * 16 * work->plan.n; }
static float *y_of_thread(const struct work *work) { return x_of_thread(work) + work->spectrum_floats; }

/* Floats of row spectra of one column frequency. */
static size_t column_stride(int images, int side, int channels) { return 2 * (size_t)images * side * channels + 16; }

/* Memory for large spectra, in huge pages: thousands of small ones would take as long as the arithmetic. */
static float *allocate(size_t floats)
{
    const size_t page = (size_t)2 << 20, bytes = (floats * sizeof(float) + page - 1) / page * page;
    float *memory = aligned_alloc(page, bytes);
#ifdef __linux__
    if (memory)
        madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

static float *new_row_spectra(const struct work *work, int images, int side, int channels)
{
    return allocate(column_stride(images, side, channels) * work->columns);
}

/* Spectra of filters: all frequencies of ``(images, channels)``. */
static size_t filter_stride(const struct work *work, int images, int channels)
{
    return work->plan.n * row_stride(images, channels);
}

static float *new_filter_spectra(const struct work *work, int images, int channels)
{
    return allocate(filter_stride(work, images, channels) * work->columns);
}

static void images_to_rows(const struct work *work, const float *images, const float *gate, int count, int side,
                           int channels, float *rows, int block)
{
    const size_t size = (size_t)side * side * channels, stride = column_stride(block, side, channels);
#pragma omp parallel for num_threads(work->threads) schedule(static)
    for (int i = 0; i < count; i++)
        FOR_LANES(work->lanes, transform_rows)(
            &work->plan, images + i * size, gate ? gate + i * size : NULL, side, channels,
            rows + 2 * (size_t)i * side * channels, stride, scratch_of_thread(work));
}

static void rows_to_images(const struct work *work, const float *rows, int block, int count, int side, int channels,
                           const float *bias, const float *residual, int relu, float *images)
{
    const size_t size = (size_t)side * side * channels, stride = column_stride(block, side, channels);
    const float scale = 1.0f / ((float)work->plan.n * (float)work->plan.n);
#pragma omp parallel for num_threads(work->threads) schedule(static)
    for (int i = 0; i < count; i++)
        FOR_LANES(work->lanes, restore_rows)(
            &work->plan, rows + 2 * (size_t)i * side * channels, stride, side, channels, scale, bias,
            residual ? residual + i * size : NULL, relu, images + i * size, scratch_of_thread(work));
}

/* Columns of `count` images, from `first` on, at one column frequency. */
static void rows_to_spectra(const struct work *work, const float *rows, int first, int count, int side, int channels,
                            float *spectra, size_t stride)
{
    for (int i = 0; i < count; i++)
        FOR_LANES(work->lanes, transform_column)(
            &work->plan, rows + 2 * (size_t)(first + i) * side * channels, side, channels,
            spectra + 2 * (size_t)i * channels, stride, scratch_of_thread(work));
}

static void spectra_to_rows(const struct work *work, const float *spectra, size_t stride, int first, int count,
                            int side, int channels, float *rows)
{
    for (int i = 0; i < count; i++)
        FOR_LANES(work->lanes, restore_column)(
            &work->plan, spectra + 2 * (size_t)i * channels, stride, side, channels,
            rows + 2 * (size_t)(first + i) * side * channels, scratch_of_thread(work));
}

static void multiply(const struct work *work, enum form form, const float *a, size_t a_stride, const float *b,
                     size_t b_stride, float *out, size_t out_stride, int images, int a_channels, int b_channels)
{
    for (int k = 0; k < work->plan.n; k++)
        FOR_LANES(work->lanes, product)(form, a + k * a_stride, b + k * b_stride, out + k * out_stride, images,
                                        a_channels, b_channels);
}

/* Spectra of filters ``(images, size, size, channels)``; `rows` is a buffer for their row spectra. */
static void filters_to_spectra(const struct work *work, const float *filters, int images, int size, int channels,
                               float *rows, float *spectra)
{
    images_to_rows(work, filters, NULL, images, size, channels, rows, images);
#pragma omp parallel for num_threads(work->threads) schedule(static)
    for (int column = 0; column < work->columns; column++)
        rows_to_spectra(work, rows + column * column_stride(images, size, channels), 0, images, size, channels,
                        spectra + column * filter_stride(work, images, channels), row_stride(images, channels));
}

static int smaller(int a, int b) { return a < b ? a : b; }
static int larger(int a, int b) { return a > b ? a : b; }

/* y = [relu](conv(x) + bias [+ residual]).
 *
 * x ``(images, n, n, inputs)``, weight ``(inputs, size, size, outputs)``, bias ``(outputs,)``, residual (may be NULL) and
 * y ``(images, n - size + 1, n - size + 1, outputs)``. `block` images are in row spectra at once. Returns 0, or -1
 * where memory is short or n has a prime factor above 5. */
int glyphcrm_fourier_forward(
    int lanes, int threads, int block, int images, int n, int inputs, int outputs, int size, int relu, const float *x,
    const float *weight, const float *bias, const float *residual, float *y)
{
    struct work work;
    const int side = n - size + 1;
    const size_t x_size = (size_t)n * n * inputs, y_size = (size_t)side * side * outputs;
    int failed = begin(&work, lanes, threads, n, larger(inputs, outputs));
    float *x_rows = failed ? NULL : new_row_spectra(&work, block, n, inputs);
    float *y_rows = failed ? NULL : new_row_spectra(&work, block, side, outputs);
    float *filter_rows = failed ? NULL : new_row_spectra(&work, inputs, size, outputs);
    float *filters = failed ? NULL : new_filter_spectra(&work, inputs, outputs);
    failed = failed || !x_rows || !y_rows || !filter_rows || !filters;
    if (!failed) {
        filters_to_spectra(&work, weight, inputs, size, outputs, filter_rows, filters);
        for (int begun = 0; begun < images; begun += block) {
            const int count = smaller(block, images - begun);
            images_to_rows(&work, x + begun * x_size, NULL, count, n, inputs, x_rows, block);
#pragma omp parallel for num_threads(work.threads) schedule(dynamic)
            for (int column = 0; column < work.columns; column++) {
                float *x_few = x_of_thread(&work), *y_few = y_of_thread(&work);
                const size_t x_stride = row_stride(work.few, inputs), y_stride = row_stride(work.few, outputs);
                for (int first = 0; first < count; first += work.few) {
                    const int few = smaller(work.few, count - first);
                    rows_to_spectra(&work, x_rows + column * column_stride(block, n, inputs), first, few, n, inputs,
                                    x_few, x_stride);
                    multiply(&work, CONJUGATE, x_few, x_stride, filters + column * filter_stride(&work, inputs, outputs),
                             row_stride(inputs, outputs), y_few, y_stride, few, inputs, outputs);
                    spectra_to_rows(&work, y_few, y_stride, first, few, side, outputs,
                                    y_rows + column * column_stride(block, side, outputs));
                }
            }
            rows_to_images(&work, y_rows, block, count, side, outputs, bias,
                           residual ? residual + begun * y_size : NULL, relu, y + begun * y_size);
        }
    }
    free(x_rows), free(y_rows), free(filter_rows), free(filters);
    end(&work);
    return failed ? -1 : 0;
}

/* The gradients of the convolution, from that of its output.
 *
 * dy ``(images, n - size + 1, n - size + 1, outputs)``, gate of the same shape (dy counts where it is above 0) or NULL,
 * weight ``(outputs, size, size, inputs)``; dx ``(images, n, n, inputs)`` or NULL, dweight
 * ``(inputs, size, size, outputs)`` or NULL, dbias ``(outputs,)``. Returns as above. */
int glyphcrm_fourier_backward(
    int lanes, int threads, int block, int images, int n, int inputs, int outputs, int size, const float *dy,
    const float *gate, const float *x, const float *weight, float *dx, float *dweight, float *dbias)
{
    struct work work;
    const int side = n - size + 1;
    const size_t x_size = (size_t)n * n * inputs, y_size = (size_t)side * side * outputs;
    int failed = begin(&work, lanes, threads, n, larger(inputs, outputs));
    double *sums = calloc(outputs, sizeof(double));
    float *x_rows = failed ? NULL : new_row_spectra(&work, block, n, inputs);
    float *y_rows = failed ? NULL : new_row_spectra(&work, block, side, outputs);
    float *filter_rows = failed ? NULL : new_row_spectra(&work, larger(inputs, outputs), size, larger(inputs, outputs));
    float *filters = failed || !dx ? NULL : new_filter_spectra(&work, outputs, inputs);
    float *gradients = failed || !dweight ? NULL : new_filter_spectra(&work, inputs, outputs);
    failed = failed || !sums || !x_rows || !y_rows || !filter_rows || (dx && !filters) || (dweight && !gradients);
    if (!failed) {
        const size_t gradient_stride = filter_stride(&work, inputs, outputs);
        if (dx)
            filters_to_spectra(&work, weight, outputs, size, inputs, filter_rows, filters);
        if (dweight)
            memset(gradients, 0, gradient_stride * work.columns * sizeof(float));
        for (int begun = 0; begun < images; begun += block) {
            const int count = smaller(block, images - begun);
            images_to_rows(&work, dy + begun * y_size, gate ? gate + begun * y_size : NULL, count, side, outputs, y_rows,
                           block);
            if (dweight)
                images_to_rows(&work, x + begun * x_size, NULL, count, n, inputs, x_rows, block);
            /* The sum of a row is its spectrum at frequency 0. */
            for (int i = 0; i < count * side; i++)
                for (int group = 0; group < outputs; group += lanes)
                    for (int lane = 0; lane < lanes; lane++)
                        sums[group + lane] += y_rows[2 * ((size_t)i * outputs + group) + lane];
#pragma omp parallel for num_threads(work.threads) schedule(dynamic)
            for (int column = 0; column < work.columns; column++) {
                float *x_few = x_of_thread(&work), *y_few = y_of_thread(&work);
                const size_t x_stride = row_stride(work.few, inputs), y_stride = row_stride(work.few, outputs);
                float *x_column = x_rows + column * column_stride(block, n, inputs);
                for (int first = 0; first < count; first += work.few) {
                    const int few = smaller(work.few, count - first);
                    rows_to_spectra(&work, y_rows + column * column_stride(block, side, outputs), first, few, side,
                                    outputs, y_few, y_stride);
                    if (dweight) {
                        rows_to_spectra(&work, x_column, first, few, n, inputs, x_few, x_stride);
                        multiply(&work, SUM_OVER_IMAGES, x_few, x_stride, y_few, y_stride,
                                 gradients + column * gradient_stride, row_stride(inputs, outputs), few, inputs, outputs);
                    }
                    if (dx) {
                        multiply(&work, PLAIN, y_few, y_stride, filters + column * filter_stride(&work, outputs, inputs),
                                 row_stride(outputs, inputs), x_few, x_stride, few, outputs, inputs);
                        /* In place of the rows of x, which have been read. */
                        spectra_to_rows(&work, x_few, x_stride, first, few, n, inputs, x_column);
                    }
                }
            }
            if (dx)
                rows_to_images(&work, x_rows, block, count, n, inputs, NULL, NULL, 0, dx + begun * x_size);
        }
        if (dweight) {
#pragma omp parallel for num_threads(work.threads) schedule(static)
            for (int column = 0; column < work.columns; column++)
                spectra_to_rows(&work, gradients + column * gradient_stride, row_stride(inputs, outputs), 0, inputs,
                                size, outputs, filter_rows + column * column_stride(inputs, size, outputs));
            rows_to_images(&work, filter_rows, inputs, inputs, size, outputs, NULL, NULL, 0, dweight);
        }
        for (int k = 0; k < outputs; k++)
            dbias[k] = (float)sums[k];
    }
    free(sums), free(x_rows), free(y_rows), free(filter_rows), free(filters), free(gradients);
    end(&work);
    return failed ? -1 : 0;
}
