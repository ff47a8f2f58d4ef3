// Closest points, codes and their digits, one block of eight a thread: latticeq/lattices and
// latticeq/codes line by line, with the same ties. Every float operation is rounded by itself
// (`plus`, `times`: never fused), so that digits equal the CPU's bit for bit.
//
// Needs CELL and INLINE. Q is a variable here: a code is not compiled for each of its q.

#define CUBIC 0
#define VORONOI 1
#define FIXED 2
#define D8 3

#define EACH _Pragma("unroll") for (int i = 0; i < 8; i++)

INLINE float plus(float a, float b) { return __fadd_rn(a, b); }
INLINE float minus(float a, float b) { return __fadd_rn(a, -b); }
INLINE float times(float a, float b) { return __fmul_rn(a, b); }
INLINE float sign_of(float x) { return copysignf(1.0f, x); }

// Sums go from the first coordinate to the last, as everywhere.
INLINE float squares(const float (&x)[8]) {
    float sum = times(x[0], x[0]);
#pragma unroll
    for (int i = 1; i < 8; i++) sum = plus(sum, times(x[i], x[i]));
    return sum;
}

INLINE float product(const float (&x)[8], const float (&y)[8]) {
    float sum = times(x[0], y[0]);
#pragma unroll
    for (int i = 1; i < 8; i++) sum = plus(sum, times(x[i], y[i]));
    return sum;
}

// The index of the largest entry, the first of equals.
INLINE int first_largest(const float (&x)[8]) {
    int where = 0;
    float best = x[0];
#pragma unroll
    for (int i = 1; i < 8; i++) {
        if (x[i] > best) { best = x[i]; where = i; }
    }
    return where;
}

// Added to a number of magnitude below 2^22, it rounds it to an integer, ties to even, whose lowest bit
// is that of the sum. Coordinates are that small: rows are coded under their root mean square.
#define RAISED 12582912.0f  // 1.5 2^23

// The closest point of D8. Errors are compared in pairs, which finds the first of the largest.
INLINE void closest_d8(const float (&x)[8], float (&point)[8]) {
    float error[8], size[8];
    u32 bits = 0;
    EACH {
        const float raised = plus(x[i], RAISED);
        bits ^= __float_as_uint(raised);
        point[i] = minus(raised, RAISED);
        error[i] = minus(x[i], point[i]);
        size[i] = fabsf(error[i]);
    }
    const bool in_01 = size[1] > size[0], in_23 = size[3] > size[2];
    const bool in_45 = size[5] > size[4], in_67 = size[7] > size[6];
    const float of_01 = fmaxf(size[0], size[1]), of_23 = fmaxf(size[2], size[3]);
    const float of_45 = fmaxf(size[4], size[5]), of_67 = fmaxf(size[6], size[7]);
    const bool in_low = of_23 > of_01, in_high = of_67 > of_45;
    const bool odd = bits & 1, above = fmaxf(of_45, of_67) > fmaxf(of_01, of_23);
    const bool low = odd && !above, high = odd && above;
    const bool moves[8] = {
        low && !in_low && !in_01, low && !in_low && in_01, low && in_low && !in_23,
        low && in_low && in_23, high && !in_high && !in_45, high && !in_high && in_45,
        high && in_high && !in_67, high && in_high && in_67};
    EACH if (moves[i]) point[i] = plus(point[i], sign_of(error[i]));
}

// The closest point of E8.
INLINE void closest_e8(const float (&x)[8], float (&point)[8]) {
    float moved[8], half[8], to_half[8], to_integer[8];
    closest_d8(x, point);
    EACH moved[i] = minus(x[i], 0.5f);
    closest_d8(moved, half);
    EACH {
        half[i] = plus(half[i], 0.5f);
        to_half[i] = minus(x[i], half[i]);
        to_integer[i] = minus(x[i], point[i]);
    }
    bool nearer = squares(to_half) < squares(to_integer);
    EACH point[i] = nearer ? half[i] : point[i];
}

// The closest point of the lattice of the Hamming code.
INLINE void closest_hamming(const float (&y)[8], float (&point)[8]) {
    float error[8], f[8];
    EACH {
        point[i] = times(rintf(times(y[i], 0.5f)), 2.0f);
        error[i] = minus(y[i], point[i]);
        f[i] = minus(1.0f, times(fabsf(error[i]), 2.0f));
    }
    float p0 = f[0], p1 = f[1], p2 = f[2], p4 = f[3], p7 = f[4], p6 = f[5], p5 = f[6], p3 = f[7];
    float a0 = plus(p0, p1), a1 = minus(p0, p1), a2 = plus(p2, p3), a3 = minus(p2, p3);
    float a4 = plus(p4, p5), a5 = minus(p4, p5), a6 = plus(p6, p7), a7 = minus(p6, p7);
    float b0 = plus(a0, a2), b1 = plus(a1, a3), b2 = minus(a0, a2), b3 = minus(a1, a3);
    float b4 = plus(a4, a6), b5 = plus(a5, a7), b6 = minus(a4, a6), b7 = minus(a5, a7);
    float sums[8] = {plus(b0, b4), plus(b1, b5), plus(b2, b6), plus(b3, b7),
                     minus(b0, b4), minus(b1, b5), minus(b2, b6), minus(b3, b7)};
    float sizes[8];
    EACH sizes[i] = fabsf(sums[i]);
    int best = first_largest(sizes);
    bool negative = false;
    EACH if (i == best) negative = sums[i] < 0;
    int x0 = best & 1, x1 = (best >> 1) & 1, x2 = best >> 2;
    int word[8] = {0, x0, x1, x2, x0 ^ x1 ^ x2, x1 ^ x2, x0 ^ x2, x0 ^ x1};
    EACH if ((word[i] ^ (int)negative) == 1) point[i] = plus(point[i], sign_of(error[i]));
}

// v = period z + r with -period / 2 <= r < period / 2; returns r.
INLINE int residue(int v, int period, int& z) {
    int up = v + period / 2;
    z = up >= 0 ? up / period : -((period - 1 - up) / period);
    return v - z * period;
}

// The representatives of doubled points of E8 modulo q E8, in the Voronoi cell.
INLINE void fold_voronoi(const int (&v)[8], int q, int (&out)[8]) {
    int r[8], rank[8], odd_whole = 0, odd_half = 0, sum = 0;
    int most = -1, least = 1 << 30, largest = -1, smallest = 1 << 30;
    EACH {
        int z;
        r[i] = residue(v[i], 2 * q, z);
        odd_whole ^= z & 1;
        odd_half ^= r[i] < 0;
        int a = abs(r[i]);
        rank[i] = 16 * a + (r[i] < 0 ? i : 15 - i);
        sum += a;
        most = max(most, rank[i]);
        least = min(least, rank[i]);
        largest = max(largest, a);
        smallest = min(smallest, a);
    }
    odd_half ^= odd_whole;
    int difference = 4 * q - sum + 2 * odd_half * smallest - 2 * odd_whole * (q - largest);
    int pull = (rank[0] == most && odd_whole) || (rank[0] == least && odd_half);
    int first = r[0] < 0 ? -1 : 1;
    bool take_half = 2 * difference + first * (2 * pull - 1) < 0;
    EACH {
        int side = r[i] < 0 ? -1 : 1;
        int whole = rank[i] == most && odd_whole ? r[i] - side * 2 * q : r[i];
        int half = rank[i] == least && odd_half ? r[i] + side * q : r[i] - side * q;
        out[i] = take_half ? half : whole;
    }
}

// The same under NestQuantM's decoder, which moves coordinate 0.
INLINE void fold_fixed(const int (&v)[8], int q, int (&out)[8]) {
    int r[8], odd_whole = 0, odd_half = 0, sum = 0;
    EACH {
        int z;
        r[i] = residue(v[i], 2 * q, z);
        odd_whole ^= z & 1;
        odd_half ^= r[i] < 0;
        sum += abs(r[i]);
    }
    odd_half ^= odd_whole;
    int first = abs(r[0]), side_of_first = r[0] < 0 ? -1 : 1;
    int difference = 4 * q - sum + 2 * odd_half * first - 2 * odd_whole * (q - first);
    bool take_half = 2 * difference + side_of_first * (2 * (odd_whole | odd_half) - 1) < 0;
    EACH {
        int side = r[i] < 0 ? -1 : 1, step = i == 0 ? side * 2 * q : 0;
        out[i] = take_half ? r[i] - side * q + odd_half * step : r[i] - odd_whole * step;
    }
}

// The representatives of integer vectors modulo q D8.
INLINE void fold_d8(const int (&v)[8], int q, int (&out)[8]) {
    int r[8], rank[8], most = -1, odd = 0;
    EACH {
        int z;
        r[i] = residue(v[i], q, z);
        odd ^= z & 1;
        rank[i] = 16 * abs(r[i]) + (r[i] < 0 ? i : 15 - i);
        most = max(most, rank[i]);
    }
    EACH out[i] = rank[i] == most && odd ? r[i] - (r[i] < 0 ? -q : q) : r[i];
}

// Doubled points of E8 from digits: 2 G c.
INLINE void generate(const int (&c)[8], int (&v)[8]) {
    v[0] = 2 * (2 * c[0] - c[1]) + c[7];
#pragma unroll
    for (int i = 1; i < 6; i++) v[i] = 2 * (c[i] - c[i + 1]) + c[7];
    v[6] = 2 * c[6] + c[7];
    v[7] = c[7];
}

// The points of digits, in the unit of the cell: those of D8 carry the coset in the first one.
INLINE void points_of(const int (&digits)[8], int q, int (&points)[8]) {
#if CELL == CUBIC
    int odd = 0;
    EACH odd ^= digits[i];
    EACH points[i] = 4 * digits[i] + 2 * ((odd & 1) ^ (i == 0)) - (2 * q - 1);
#elif CELL == D8
    fold_d8(digits, q, points);
#else
    int v[8];
    generate(digits, v);
#if CELL == VORONOI
    fold_voronoi(v, q, points);
#else
    fold_fixed(v, q, points);
#endif
#endif
}

INLINE int modulo(int n, int q) {
    int rest = n % q;
    return rest < 0 ? rest + q : rest;
}

// The digits of a point that the encoder found.
INLINE void digits_of(const float (&point)[8], int q, int (&digits)[8]) {
#if CELL == CUBIC
    EACH digits[i] = ((int)times(point[i], 4.0f) + 2 * q - 1) >> 2;
#elif CELL == D8
    int coset = 0;
    EACH {
        int v = (int)point[i], quotient = (v >= q) - (v < 0);
        coset ^= quotient & 1;
        digits[i] = v - quotient * q;
    }
    digits[0] += coset * q;
#else
    int v[8], halves[8];
    EACH v[i] = (int)plus(point[i], point[i]);
    EACH halves[i] = (v[i] - v[7]) >> 1;
    int c = halves[6];
    digits[6] = modulo(c, q);
#pragma unroll
    for (int i = 5; i > 0; i--) {
        c += halves[i];
        digits[i] = modulo(c, q);
    }
    digits[0] = modulo((halves[0] + c) >> 1, q);
    digits[7] = modulo(v[7], q);
#endif
}

#if CELL == CUBIC

// The nearest integers in a range whose sum has a parity.
INLINE void nearest_of_parity(const float (&y)[8], int parity, float low, float high, float (&n)[8]) {
    float step[8], gain[8];
    int odd = 0;
    EACH {
        float rounded = rintf(y[i]);
        rounded = rounded > low ? rounded : low;
        n[i] = rounded < high ? rounded : high;
        float error = minus(y[i], n[i]);
        step[i] = sign_of(error);
        float moved = plus(n[i], step[i]);
        if (moved > high || moved < low) step[i] = -step[i];
        gain[i] = times(step[i], error);
        odd ^= (int)n[i];
    }
    int cheapest = first_largest(gain);
    EACH if (i == cheapest && (odd & 1) != parity) n[i] = plus(n[i], step[i]);
}

// The nearest points with digits in a range; returns the squared distance.
INLINE float nearest_within(const float (&y)[8], int q, float low, float high, float (&point)[8]) {
    float whole[8], half[8], even[8], odd[8], a[8], b[8];
    EACH {
        whole[i] = -0.25f * (2 * q - 1) + (i == 0 ? 0.5f : 0.0f);
        half[i] = -0.25f * (2 * q - 3) - (i == 0 ? 0.5f : 0.0f);
        a[i] = minus(y[i], whole[i]);
        b[i] = minus(y[i], half[i]);
    }
    nearest_of_parity(a, 0, low, high, even);
    nearest_of_parity(b, 1, low, high, odd);
    EACH {
        a[i] = minus(a[i], even[i]);
        b[i] = minus(b[i], odd[i]);
    }
    float even_cost = squares(a), odd_cost = squares(b);
    bool is_odd = odd_cost < even_cost;
    EACH point[i] = is_odd ? plus(odd[i], half[i]) : plus(even[i], whole[i]);
    return is_odd ? odd_cost : even_cost;
}

// A codeword near y; true if, without moves, a point outside the box would be nearer.
INLINE bool nearest(const float (&start)[8], int q, int moves, float (&t)[8]) {
    float cost = nearest_within(start, q, 0.0f, q - 1, t);
    if (moves > 0) return false;
    float free[8];
    return nearest_within(start, q, -4194304.0f, 4194304.0f, free) < cost;
}

#else

// The step that takes y back from `away`, a multiple of the coarse lattice; zero if that is.
INLINE void retreat_from(const float (&y)[8], const float (&away)[8], int q, float (&step)[8]) {
    float norm = squares(away);
    float over = norm > 1.0f ? norm : 1.0f;
    float beyond = times(minus(__fdiv_rn(product(y, away), over), 0.5f * q), 0.5f);
    float factor = beyond > 0.125f ? beyond : 0.125f;
    EACH step[i] = times(factor, away[i]);
}

#if CELL == VORONOI
// The least and the largest of eight.
INLINE void extremes(const float (&x)[8], float& least, float& most) {
    least = fminf(fminf(fminf(x[0], x[1]), fminf(x[2], x[3])),
                  fminf(fminf(x[4], x[5]), fminf(x[6], x[7])));
    most = fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])),
                 fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7])));
}

INLINE float whole_sixteenths(float rank) {  // rank / 16, rounded down
    return minus(plus(__fmaf_rn(rank, 0.0625f, -0.46875f), RAISED), RAISED);
}

// How far a point of E8 lies from its representative modulo q E8, over q: zero for a codeword. It is
// `fold_voronoi` in floats, which hold these integers exactly: here they are faster.
INLINE void beyond_cell(const float (&t)[8], int q, float (&away)[8]) {
    const float period = (float)(2 * q), inverse = __fdiv_rn(0.5f, (float)q);
    float r[8], rank[8], side[8], size[8];
    u32 odds = 0, signs = 0;
    EACH {
        // No tie comes up: from one, multiples of 1 / 2q are half of that away.
        const float v = plus(t[i], t[i]);
        const float raised = plus(__fmaf_rn(v, inverse, 0.5f * inverse), RAISED);
        odds ^= __float_as_uint(raised);
        away[i] = minus(raised, RAISED);
        r[i] = __fmaf_rn(-period, away[i], v);
        signs ^= __float_as_uint(r[i]);
        side[i] = sign_of(r[i]);
        size[i] = fabsf(r[i]);
        rank[i] = __fmaf_rn(size[i], 16.0f, __fmaf_rn(side[i], 7.5f - i, 7.5f));
    }
    const float sum = plus(plus(plus(size[0], size[1]), plus(size[2], size[3])),
                           plus(plus(size[4], size[5]), plus(size[6], size[7])));
    float least, most;
    extremes(rank, least, most);
    const bool odd_whole = odds & 1, odd_half = (signs >> 31 ^ odds) & 1;
    float difference = minus(2.0f * period, sum);
    if (odd_half) difference = __fmaf_rn(2.0f, whole_sixteenths(least), difference);
    if (odd_whole) difference = __fmaf_rn(2.0f, whole_sixteenths(most), minus(difference, period));
    const bool pull = (rank[0] == most && odd_whole) || (rank[0] == least && odd_half);
    const bool take_half = plus(plus(difference, difference), pull ? side[0] : -side[0]) < 0;
    const float key = take_half ? (odd_half ? least : -1.0f) : (odd_whole ? most : -1.0f);
    const float there = take_half ? -0.5f : 1.0f, elsewhere = take_half ? 0.5f : 0.0f;
    EACH away[i] = __fmaf_rn(side[i], rank[i] == key ? there : elsewhere, away[i]);
    if (q & (q - 1)) {  // divided as the CPU does it, which then rounds
        const float unit = (float)(0.5 / q);
        EACH away[i] = times(times(period, away[i]), unit);
    }
}
#else
// What to take off y when t is closest to it: zero if t is a codeword.
INLINE void retreat(const float (&y)[8], const float (&t)[8], int q, float (&step)[8]) {
    int v[8], inside[8];
    float away[8];
#if CELL == D8
    EACH v[i] = (int)t[i];
    fold_d8(v, q, inside);
    const float unit = (float)(1.0 / q);
    EACH away[i] = times((float)(v[i] - inside[i]), unit);
    retreat_from(y, away, q, step);
#else
    EACH v[i] = (int)plus(t[i], t[i]);
    const float unit = (float)(0.5 / q);
    fold_fixed(v, q, inside);
    EACH away[i] = times((float)(v[i] - inside[i]), unit);
    bool is_out = false;
    float to_box[8];
    EACH {
        int limit = i == 0 ? 2 * q : q;
        float face = (float)((v[i] >= limit) - (v[i] + limit < 0));
        float beyond = times(minus(fabsf(y[i]), times((float)limit, 0.5f)), 0.5f);
        to_box[i] = times(beyond > 0.125f ? beyond : 0.125f, face);
        is_out |= face != 0;
    }
    retreat_from(y, away, q, step);
    EACH step[i] = is_out ? to_box[i] : step[i];
#endif
}
#endif

#define PATIENCE 64

// A codeword near y, or after so many moves an overloaded point; true if it is one.
INLINE bool nearest(const float (&start)[8], int q, int moves, float (&t)[8]) {
    float y[8], step[8];
    EACH y[i] = plus(start[i], 0.0f);  // no zero is negative: `RAISED` would lose that
    for (int made = 0;;) {
#if CELL == VORONOI
        float away[8];
        closest_e8(y, t);
        beyond_cell(t, q, away);
        const bool outside = squares(away) > 0;
        if (made >= moves || !outside) return outside;
        retreat_from(y, away, q, step);
#else
#if CELL == D8
        closest_hamming(y, t);
#else
        closest_e8(y, t);
#endif
        retreat(y, t, q, step);
        bool outside = squares(step) > 0;
        if (made >= moves || !outside) return outside;
#endif
        EACH y[i] = minus(y[i], step[i]);
        made++;
        if (made > PATIENCE) { EACH y[i] = times(y[i], 0.5f); }
    }
}

#endif

#define MOVES 4
#define FEW 4
#define ENDLESS (1 << 30)

// The scale and the point of the code chosen for a block: the point, and the scale's index.
INLINE int closest_codeword(
    const float (&x)[8], const float* betas, const float* inverse, int k, int q, bool first_fit,
    float (&point)[8]
) {
    float least = 1.0f / 0.0f;
    int which = 0;
    EACH point[i] = 0;
    for (int p = 0; p < k; p++) {
        bool is_last = p + 1 == k;
        int moves = is_last || q <= FEW ? ENDLESS : MOVES;
        float y[8], t[8], error[8];
        EACH y[i] = times(x[i], inverse[p]);
        bool outside = nearest(y, q, first_fit && !is_last ? 0 : moves, t);
        EACH error[i] = minus(x[i], times(t[i], betas[p]));
        float cost = squares(error);
        if (first_fit) cost = is_last ? 0.5f : 0.0f;
        if (!outside && cost < least) {
            least = cost;
            which = p;
            EACH point[i] = t[i];
        }
    }
    return which;
}
