/* The arithmetic of the Fourier convolution, for one instruction set (each_instruction_set.h includes this file).
 *
 * Everything is vectorised over channels: a "number" here is a vector V of LANES neighbouring channels, which NHWC
 * memory order gives without a transposition. A row of spectra holds all channels of an image at one place:
 *
 *     row[group of LANES channels][real part, imaginary part][lane]
 *
 * Images are real, so of the n columns of a spectrum only the first n/2 + 1 are kept. */

#define V ISA(V)

/* `value`, or 0 where `gate` is 0 or less. As in PyTorch's ReLU, a gate that is NaN lets the value through. */
static inline __attribute__((always_inline)) V ISA(gated)(V value, V gate)
{
    const V zero = {0};
    return (V)((ISA(Bits))value & ~(gate <= zero));
}

/* Transforms -------------------------------------------------------------------------------------------- */

/* One radix-r pass of Stockham's algorithm: reads n * s numbers at x, writes them at y. */
static inline __attribute__((always_inline)) void ISA(pass)(
    const int radix, int n, int s, const float *twiddle, const V *xr, const V *xi, V *yr, V *yi)
{
    const int m = n / radix;
    for (int p = 0; p < m; p++, twiddle += 2 * (radix - 1)) {
        for (int q = 0; q < s; q++) {
            V ar[5], ai[5], br[5], bi[5];
            for (int j = 0; j < radix; j++) {
                ar[j] = xr[q + s * (p + m * j)];
                ai[j] = xi[q + s * (p + m * j)];
            }
            if (radix == 2) {
                br[0] = ar[0] + ar[1], bi[0] = ai[0] + ai[1];
                br[1] = ar[0] - ar[1], bi[1] = ai[0] - ai[1];
            } else if (radix == 3) {
                const float half = 0.5f, sine = 0.86602540378443864676f;
                V sr = ar[1] + ar[2], si = ai[1] + ai[2], dr = sine * (ar[1] - ar[2]), di = sine * (ai[1] - ai[2]);
                V tr = ar[0] - half * sr, ti = ai[0] - half * si;
                br[0] = ar[0] + sr, bi[0] = ai[0] + si;
                br[1] = tr + di, bi[1] = ti - dr;
                br[2] = tr - di, bi[2] = ti + dr;
            } else if (radix == 4) {
                V sr = ar[0] + ar[2], si = ai[0] + ai[2], dr = ar[0] - ar[2], di = ai[0] - ai[2];
                V tr = ar[1] + ar[3], ti = ai[1] + ai[3], er = ar[1] - ar[3], ei = ai[1] - ai[3];
                br[0] = sr + tr, bi[0] = si + ti;
                br[1] = dr + ei, bi[1] = di - er;
                br[2] = sr - tr, bi[2] = si - ti;
                br[3] = dr - ei, bi[3] = di + er;
            } else {
                const float c1 = 0.30901699437494742410f, c2 = -0.80901699437494742410f;
                const float s1 = 0.95105651629515357212f, s2 = 0.58778525229247312917f;
                V pr = ar[1] + ar[4], pi = ai[1] + ai[4], mr = ar[1] - ar[4], mi = ai[1] - ai[4];
                V qr = ar[2] + ar[3], qi = ai[2] + ai[3], nr = ar[2] - ar[3], ni = ai[2] - ai[3];
                V ur = ar[0] + c1 * pr + c2 * qr, ui = ai[0] + c1 * pi + c2 * qi;
                V vr = ar[0] + c2 * pr + c1 * qr, vi = ai[0] + c2 * pi + c1 * qi;
                V wr = s1 * mr + s2 * nr, wi = s1 * mi + s2 * ni;
                V zr = s2 * mr - s1 * nr, zi = s2 * mi - s1 * ni;
                br[0] = ar[0] + pr + qr, bi[0] = ai[0] + pi + qi;
                br[1] = ur + wi, bi[1] = ui - wr;
                br[2] = vr + zi, bi[2] = vi - zr;
                br[3] = vr - zi, bi[3] = vi + zr;
                br[4] = ur - wi, bi[4] = ui + wr;
            }
            yr[q + s * radix * p] = br[0];
            yi[q + s * radix * p] = bi[0];
            for (int k = 1; k < radix; k++) {
                const float c = twiddle[2 * k - 2], d = twiddle[2 * k - 1];
                yr[q + s * (radix * p + k)] = c * br[k] - d * bi[k];
                yi[q + s * (radix * p + k)] = c * bi[k] + d * br[k];
            }
        }
    }
}

/* Discrete Fourier transform of plan->n complex numbers; (xr, xi) is overwritten. The result is at (*yr, *yi), which
 * is either (xr, xi) or (tr, ti). Exchanging real and imaginary parts of input and output gives the inverse, times n. */
static inline void ISA(transform)(
    const struct plan *plan, V *xr, V *xi, V *tr, V *ti, V **yr, V **yi)
{
    const float *twiddle = plan->twiddles;
    int n = plan->n, s = 1;
    for (int i = 0; i < plan->passes; i++) {
        const int radix = plan->radices[i];
        switch (radix) {
        case 2: ISA(pass)(2, n, s, twiddle, xr, xi, tr, ti); break;
        case 3: ISA(pass)(3, n, s, twiddle, xr, xi, tr, ti); break;
        case 4: ISA(pass)(4, n, s, twiddle, xr, xi, tr, ti); break;
        default: ISA(pass)(5, n, s, twiddle, xr, xi, tr, ti); break;
        }
        twiddle += 2 * (radix - 1) * (n / radix);
        n /= radix, s *= radix;
        V *swap = xr; xr = tr, tr = swap;
        swap = xi; xi = ti, ti = swap;
    }
    *yr = xr, *yi = xi;
}

/* Transforms the rows of an image ``(side, side, channels)``, with zeros to their right. Row `row` at frequency k goes
 * to out + k * stride + row * 2 * channels. Where `gate` is given, of the image's shape, the image counts only where
 * the gate is above 0: the gradient of a ReLU. */
static void ISA(transform_rows)(
    const struct plan *plan, const float *image, const float *gate, int side, int channels, float *out, size_t stride,
    void *scratch)
{
    const int n = plan->n;
    V *ar = scratch, *ai = ar + n, *br = ai + n, *bi = br + n;
    const V zero = {0};
    for (int row = 0; row < side; row += 2) {
        /* Two real rows at once, as real and imaginary part. */
        const int has_second = row + 1 < side;
        for (int group = 0; group < channels; group += LANES) {
            const size_t at = (size_t)row * side * channels + group;
            for (int column = 0; column < side; column++) {
                const size_t here = at + (size_t)column * channels, below = here + (size_t)side * channels;
                V first = *(const V *)(image + here), second = has_second ? *(const V *)(image + below) : zero;
                if (gate)
                    first = ISA(gated)(first, *(const V *)(gate + here));
                if (gate && has_second)
                    second = ISA(gated)(second, *(const V *)(gate + below));
                ar[column] = first, ai[column] = second;
            }
            for (int column = side; column < n; column++)
                ar[column] = ai[column] = zero;
            V *zr, *zi;
            ISA(transform)(plan, ar, ai, br, bi, &zr, &zi);
            float *to = out + 2 * ((size_t)row * channels + group);
            for (int k = 0; k <= n / 2; k++, to += stride) {
                const int mirror = k ? n - k : 0;
                const V pr = zr[k], pi = zi[k], qr = zr[mirror], qi = zi[mirror];
                *(V *)to = 0.5f * (pr + qr);
                *(V *)(to + LANES) = 0.5f * (pi - qi);
                if (has_second) {
                    *(V *)(to + 2 * channels) = 0.5f * (pi + qi);
                    *(V *)(to + 2 * channels + LANES) = 0.5f * (qr - pr);
                }
            }
        }
    }
}

/* Transforms one column: `side` rows, zeros below them, to n frequencies, which are `stride` floats apart. */
static void ISA(transform_column)(
    const struct plan *plan, const float *in, int side, int channels, float *out, size_t stride, void *scratch)
{
    const int n = plan->n;
    V *ar = scratch, *ai = ar + n, *br = ai + n, *bi = br + n;
    const V zero = {0};
    for (int group = 0; group < channels; group += LANES) {
        const float *from = in + 2 * group;
        for (int row = 0; row < side; row++, from += 2 * channels)
            ar[row] = *(const V *)from, ai[row] = *(const V *)(from + LANES);
        for (int row = side; row < n; row++)
            ar[row] = ai[row] = zero;
        V *zr, *zi;
        ISA(transform)(plan, ar, ai, br, bi, &zr, &zi);
        float *to = out + 2 * group;
        for (int k = 0; k < n; k++, to += stride)
            *(V *)to = zr[k], *(V *)(to + LANES) = zi[k];
    }
}

/* The inverse of `transform_column`, times n. */
static void ISA(restore_column)(
    const struct plan *plan, const float *in, size_t stride, int side, int channels, float *out, void *scratch)
{
    const int n = plan->n;
    V *ar = scratch, *ai = ar + n, *br = ai + n, *bi = br + n;
    for (int group = 0; group < channels; group += LANES) {
        const float *from = in + 2 * group;
        for (int k = 0; k < n; k++, from += stride)
            ar[k] = *(const V *)from, ai[k] = *(const V *)(from + LANES);
        V *zr, *zi;
        ISA(transform)(plan, ai, ar, bi, br, &zi, &zr);
        float *to = out + 2 * group;
        for (int row = 0; row < side; row++, to += 2 * channels)
            *(V *)to = zr[row], *(V *)(to + LANES) = zi[row];
    }
}

/* The inverse of `transform_rows`, times n and `scale`, plus `bias` ``(channels,)`` and `residual` of the image's shape,
 * through a ReLU; the last three where they are given. */
static void ISA(restore_rows)(
    const struct plan *plan, const float *in, size_t stride, int side, int channels, float scale, const float *bias,
    const float *residual, int relu, float *image, void *scratch)
{
    const int n = plan->n;
    V *ar = scratch, *ai = ar + n, *br = ai + n, *bi = br + n;
    const V zero = {0};
    for (int row = 0; row < side; row += 2) {
        const int has_second = row + 1 < side;
        for (int group = 0; group < channels; group += LANES) {
            const float *from = in + 2 * ((size_t)row * channels + group);
            for (int k = 0; k <= n / 2; k++, from += stride) {
                const V pr = *(const V *)from, pi = *(const V *)(from + LANES);
                const V qr = has_second ? *(const V *)(from + 2 * channels) : zero;
                const V qi = has_second ? *(const V *)(from + 2 * channels + LANES) : zero;
                ar[k] = pr - qi, ai[k] = pi + qr;
                if (k && 2 * k < n)
                    ar[n - k] = pr + qi, ai[n - k] = qr - pi;
            }
            V *zr, *zi;
            ISA(transform)(plan, ai, ar, bi, br, &zi, &zr);
            const V shift = bias ? *(const V *)(bias + group) : zero;
            for (int second = 0; second <= has_second; second++) {
                const V *values = second ? zi : zr;
                const size_t at = (size_t)(row + second) * side * channels + group;
                for (int column = 0; column < side; column++) {
                    const size_t here = at + (size_t)column * channels;
                    V value = scale * values[column] + shift;
                    if (residual)
                        value += *(const V *)(residual + here);
                    if (relu)
                        value = ISA(gated)(value, value);
                    *(V *)(image + here) = value;
                }
            }
        }
    }
}

/* Products ---------------------------------------------------------------------------------------------- */

/* `rows` (at most 6) x `vectors` (at most 2) complex results at once, in registers:
 *     out[m, :] (+)= sum over p of a[m, p] * b[p, :], or with the conjugate of b.
 * a[m, p] starts at a[m] and goes `inner` floats with each p; every `run` of them it goes `outer` from the run's start.
 * Each sum is a variable with a name: GCC moves the elements of an array to memory and back, at half the speed. */
static inline __attribute__((always_inline)) void ISA(product_tile)(
    const int rows, const int vectors, const float *const *a, int runs, int run, int inner, int outer,
    const float *b, int b_stride, float *const *out, const int conjugate, const int accumulate)
{
    _Static_assert(TILE_ROWS <= 6, "FOR_ROWS has six rows");
    const V zero = {0};
    const int two = vectors == 2;
#define FOR_ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define START(m) \
    const float *const a##m = m < rows ? a[m] : NULL; \
    V r##m = zero, i##m = zero, s##m = zero, j##m = zero; /* real and imaginary sums of both vectors */ \
    if (m < rows && accumulate) { \
        r##m = *(const V *)out[m], i##m = *(const V *)(out[m] + LANES); \
        if (two) \
            s##m = *(const V *)(out[m] + 2 * LANES), j##m = *(const V *)(out[m] + 3 * LANES); \
    }
#define ADD(m) \
    if (m < rows) { \
        const float ar = a##m[at], ai = a##m[at + LANES]; \
        r##m += ar * br, i##m += ai * br; \
        s##m += ar * cr, j##m += ai * cr; \
        if (conjugate) { \
            r##m += ai * bi, i##m -= ar * bi; \
            s##m += ai * ci, j##m -= ar * ci; \
        } else { \
            r##m -= ai * bi, i##m += ar * bi; \
            s##m -= ai * ci, j##m += ar * ci; \
        } \
    }
#define FINISH(m) \
    if (m < rows) { \
        *(V *)out[m] = r##m, *(V *)(out[m] + LANES) = i##m; \
        if (two) \
            *(V *)(out[m] + 2 * LANES) = s##m, *(V *)(out[m] + 3 * LANES) = j##m; \
    }
    FOR_ROWS(START)
    for (int o = 0; o < runs; o++) {
        size_t at = (size_t)o * outer;
        for (int p = 0; p < run; p++, at += inner, b += b_stride) {
            const V br = *(const V *)b, bi = *(const V *)(b + LANES);
            const V cr = two ? *(const V *)(b + 2 * LANES) : zero, ci = two ? *(const V *)(b + 3 * LANES) : zero;
            FOR_ROWS(ADD)
        }
    }
    FOR_ROWS(FINISH)
#undef FOR_ROWS
#undef START
#undef ADD
#undef FINISH
}

/* Where channel `c` of a spectrum's row starts. */
static inline int ISA(channel)(int c) { return c / LANES * 2 * LANES + c % LANES; }

/* A tile of `rows` x `vectors` of the product below, in one of its three forms. */
static inline __attribute__((always_inline)) void ISA(product_form)(
    const int rows, const int vectors, enum form form, const float *const *a, int images, int a_channels,
    const float *b, int b_stride, float *const *out)
{
    if (form == SUM_OVER_IMAGES)
        ISA(product_tile)(rows, vectors, a, 1, images, 2 * a_channels, 0, b, b_stride, out, 1, 1);
    else if (form == CONJUGATE)
        ISA(product_tile)(rows, vectors, a, a_channels / LANES, LANES, 1, 2 * LANES, b, b_stride, out, 1, 0);
    else
        ISA(product_tile)(rows, vectors, a, a_channels / LANES, LANES, 1, 2 * LANES, b, b_stride, out, 0, 0);
}

/* The product at one frequency; a ``(images, a_channels)``.
 * PLAIN and CONJUGATE: out ``(images, b_channels)`` = a @ b or a @ conj(b), b ``(a_channels, b_channels)``.
 * SUM_OVER_IMAGES: out ``(a_channels, b_channels)`` += a^T @ conj(b), b ``(images, b_channels)``. */
static void ISA(product)(
    enum form form, const float *a, const float *b, float *out, int images, int a_channels, int b_channels)
{
    const int rows = form == SUM_OVER_IMAGES ? a_channels : images, b_stride = 2 * b_channels;
    const int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    const float *from[TILE_ROWS];
    float *to[TILE_ROWS];
    for (int column = 0, vectors; column < b_channels; column += vectors * LANES) {
        vectors = b_channels - column >= 2 * LANES ? 2 : 1;
        /* Tiles of nearly equal height: a low one at the end would wait for its own sums. */
        for (int tile = 0; tile < tiles; tile++) {
            const int first = (int)((int64_t)tile * rows / tiles), count = (int)((tile + 1LL) * rows / tiles) - first;
            for (int i = 0; i < count; i++) {
                const int row = first + i;
                from[i] = a + (form == SUM_OVER_IMAGES ? (size_t)ISA(channel)(row) : 2 * (size_t)row * a_channels);
                to[i] = out + (size_t)row * b_stride + 2 * column;
            }
#define TILE(ROWS) \
    case ROWS: \
        if (vectors == 2) \
            ISA(product_form)(ROWS, 2, form, from, images, a_channels, b + 2 * column, b_stride, to); \
        else \
            ISA(product_form)(ROWS, 1, form, from, images, a_channels, b + 2 * column, b_stride, to); \
        break
            switch (count) {
                TILE(1);
                TILE(2);
#if TILE_ROWS > 2
                TILE(3);
                TILE(4);
                TILE(5);
                TILE(6);
#endif
            }
#undef TILE
        }
    }
}

#undef V
