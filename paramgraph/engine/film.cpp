// Edges of one pass, forward and backward; what `kernels.py` does with PyTorch, without leaving the
// first cache: a few edges of one target at a time pass through updates and messages.
//
// Widths are multiples of a vector (64 bytes). Vectors are GCC's and Clang's portable ones, so any
// processor will do. Layouts are those of `edge_tiles.py`: edges [blocks, targets, sources, dim].

#include "vectors.h"

namespace {

constexpr int CHUNK = 16;  // edges at a time

// c[ROWS, n] (+)= a[ROWS, k] b[k, n]; a has any strides, n is a multiple of LANES.
template <class R, int ROWS>
inline void rows_product(const R* a, ptrdiff_t row, ptrdiff_t column, const R* b, R* c,
                         ptrdiff_t c_row, int k, int n, bool adds) {
  for (int start = 0; start < n; start += 2 * LANES<R>) {
    const bool is_pair = start + LANES<R> < n;
    Vec<R> sum[ROWS][2];
    for (int i = 0; i < ROWS; ++i) {
      sum[i][0] = adds ? load(c + i * c_row + start) : Vec<R>{};
      sum[i][1] = adds && is_pair ? load(c + i * c_row + start + LANES<R>) : Vec<R>{};
    }
    if (is_pair) {
      for (int j = 0; j < k; ++j) {
        const Vec<R> first = load(b + ptrdiff_t(j) * n + start);
        const Vec<R> second = load(b + ptrdiff_t(j) * n + start + LANES<R>);
        for (int i = 0; i < ROWS; ++i) {
          const R x = a[i * row + j * column];
          sum[i][0] += x * first;
          sum[i][1] += x * second;
        }
      }
    } else {
      for (int j = 0; j < k; ++j) {
        const Vec<R> first = load(b + ptrdiff_t(j) * n + start);
        for (int i = 0; i < ROWS; ++i) sum[i][0] += a[i * row + j * column] * first;
      }
    }
    for (int i = 0; i < ROWS; ++i) {
      store(c + i * c_row + start, sum[i][0]);
      if (is_pair) store(c + i * c_row + start + LANES<R>, sum[i][1]);
    }
  }
}

template <class R>
void product(int m, const R* a, ptrdiff_t row, ptrdiff_t column, const R* b, R* c, int k, int n,
             bool adds) {
  int i = 0;
  for (; i + 8 <= m; i += 8)
    rows_product<R, 8>(a + i * row, row, column, b, c + ptrdiff_t(i) * n, n, k, n, adds);
  for (; i + 4 <= m; i += 4)
    rows_product<R, 4>(a + i * row, row, column, b, c + ptrdiff_t(i) * n, n, k, n, adds);
  for (; i < m; ++i)
    rows_product<R, 1>(a + i * row, row, column, b, c + ptrdiff_t(i) * n, n, k, n, adds);
}

}  // namespace

// What `native.py` passes; pointers that are not used are null.
template <class R> struct Update {
  const R *weight, *turned;  // [out, in] and [in, out]
  const R *targets, *sources;
  R *of_weight, *of_targets, *of_sources;
};

template <class R> struct Pass {
  long blocks, targets, sources, dim, num_updates;
  const Update<R>* updates;
  const R* features;  // before the updates
  R* state;           // after them: written forward, read backward
  const R *film, *film_turned, *film_bias, *film_targets, *film_sources;
  R* totals[4];  // sums, squares, lows, highs: written forward, their gradients read backward
  const R* flows;
  R *of_features, *of_film, *of_film_bias, *of_film_targets, *of_film_sources;
};

namespace {

template <class R> struct Runner {
  const Pass<R>& pass;
  const int dim;
  std::vector<R> before, inputs;  // of a chunk: [updates, CHUNK, dim], [updates + 1, CHUNK, dim]
  std::vector<R> both, message;   // of a chunk forward, of all edges of a target backward
  std::vector<R> flows, other;

  Runner(const Pass<R>& p, bool is_backward)
      : pass(p), dim(int(p.dim)), before(p.num_updates * CHUNK * p.dim + 1),
        inputs((p.num_updates + 1) * CHUNK * p.dim),
        both((is_backward ? p.sources : CHUNK) * 2 * p.dim),
        message((is_backward ? p.sources : CHUNK) * p.dim), flows(CHUNK * p.dim),
        other(CHUNK * p.dim) {}

  // Features of some edges after all updates; `before` and `inputs` are filled on the way. Without
  // `is_whole` the last activation is left out.
  const R* read(long block, long target, long source, int num, long edge, R* kept,
                bool is_whole = true) {
    const R* x = pass.features + edge * dim;
    for (long u = 0; u < pass.num_updates; ++u) {
      const Update<R>& update = pass.updates[u];
      R* inner = before.data() + u * CHUNK * dim;
      R* after = inputs.data() + (u + 1) * CHUNK * dim;
      if (kept != nullptr && u + 1 == pass.num_updates) after = kept;
      product<R>(num, x, dim, 1, update.turned, inner, dim, dim, false);
      const R* own = update.targets + (block * pass.targets + target) * dim;
      const R* others = update.sources + (block * pass.sources + source) * dim;
      for (int i = 0; i < num; ++i)
        for (int f = 0; f < dim; f += LANES<R>) {
          const Vec<R> v = load(inner + i * dim + f) + load(own + f) + load(others + i * dim + f);
          store(inner + i * dim + f, v);
          if (is_whole || u + 1 < pass.num_updates) store(after + i * dim + f, v * sigmoid<R>(v));
        }
      x = after;
    }
    return x;
  }

  // Messages of some edges, and the scales and shifts they are made of.
  void messages(const R* x, const R* own, const R* others, int num, R* scales, R* out) {
    product<R>(num, x, dim, 1, pass.film_turned, scales, dim, 2 * dim, false);
    for (int i = 0; i < num; ++i)
      for (int f = 0; f < dim; f += LANES<R>) {
        const Vec<R> scale = load(scales + i * 2 * dim + f) + load(pass.film_bias + f);
        const Vec<R> shift = load(scales + i * 2 * dim + dim + f) + load(pass.film_bias + dim + f);
        store(scales + i * 2 * dim + f, scale);
        store(out + i * dim + f, scale * (load(own + f) + load(others + i * dim + f)) + shift);
      }
  }

  void forward(long block, long target) {
    const long place = block * pass.targets + target;
    for (long start = 0; start < pass.sources; start += CHUNK) {
      const int num = int(pass.sources - start < CHUNK ? pass.sources - start : CHUNK);
      const long edge = place * pass.sources + start;
      R* kept = pass.state == nullptr ? nullptr : pass.state + edge * dim;
      const R* x = read(block, target, start, num, edge, kept);
      if (pass.film == nullptr) continue;
      const R* others = pass.film_sources + (block * pass.sources + start) * dim;
      messages(x, pass.film_targets + place * dim, others, num, both.data(), message.data());
      for (int f = 0; f < dim; f += LANES<R>) {
        const Vec<R> one = load(message.data() + f);
        Vec<R> sum = one, square = one * one, low = one, high = one;
        for (int i = 1; i < num; ++i) {
          const Vec<R> m = load(message.data() + i * dim + f);
          sum += m;
          square += m * m;
          low = least<R>(low, m);
          high = largest<R>(high, m);
        }
        R* out[4];
        for (int k = 0; k < 4; ++k) out[k] = pass.totals[k] + place * dim + f;
        if (start > 0) {
          sum += load(out[0]);
          square += load(out[1]);
          low = least<R>(low, load(out[2]));
          high = largest<R>(high, load(out[3]));
        }
        store(out[0], sum);
        store(out[1], square);
        store(out[2], low);
        store(out[3], high);
      }
    }
  }

  // Turns scales and shifts of all edges of a target into their gradients.
  void messages_backward(long place, long block) {
    const R* own = pass.film_targets + place * dim;
    const long num = pass.sources;
    for (int f = 0; f < dim; f += LANES<R>) {
      Vec<R> low = load(message.data() + f), high = low;
      for (long i = 1; i < num; ++i) {
        const Vec<R> m = load(message.data() + i * dim + f);
        low = least<R>(low, m);
        high = largest<R>(high, m);
      }
      const Vec<R> one = splat<R>(1), none = Vec<R>{};
      Vec<R> num_low = none, num_high = none;
      for (long i = 0; i < num; ++i) {
        const Vec<R> m = load(message.data() + i * dim + f);
        num_low += m == low ? one : none;
        num_high += m == high ? one : none;
      }
      Vec<R> given[4];
      for (int k = 0; k < 4; ++k) given[k] = load(pass.totals[k] + place * dim + f);
      // Messages that share the least or the largest value share its gradient.
      const Vec<R> of_low = given[2] / num_low, of_high = given[3] / num_high;
      const Vec<R> at = load(own + f);
      Vec<R> of_target = none, of_scales = none, of_shifts = none;
      for (long i = 0; i < num; ++i) {
        const Vec<R> m = load(message.data() + i * dim + f);
        Vec<R> g = given[0] + R(2) * given[1] * m;
        g += m == low ? of_low : none;
        g += m == high ? of_high : none;
        R* scales = both.data() + i * 2 * dim + f;
        const long other = (block * pass.sources + i) * dim + f;
        const Vec<R> of_ends = g * load(scales);
        const Vec<R> of_scale = g * (at + load(pass.film_sources + other));
        store(pass.of_film_sources + other, load(pass.of_film_sources + other) + of_ends);
        store(scales, of_scale);
        store(scales + dim, g);
        of_target += of_ends;
        of_scales += of_scale;
        of_shifts += g;
      }
      store(pass.of_film_targets + place * dim + f, of_target);
      store(pass.of_film_bias + f, load(pass.of_film_bias + f) + of_scales);
      store(pass.of_film_bias + dim + f, load(pass.of_film_bias + dim + f) + of_shifts);
    }
  }

  void update_backward(const Update<R>& update, const R* inner, const R* x, long place, long other,
                       int num, R* out) {
    for (int f = 0; f < dim; f += LANES<R>) {
      Vec<R> of_target = load(update.of_targets + place * dim + f);
      for (int i = 0; i < num; ++i) {
        const Vec<R> v = load(inner + i * dim + f), part = sigmoid<R>(v);
        const Vec<R> g = load(flows.data() + i * dim + f) * (part * (R(1) + v * (R(1) - part)));
        R* of_source = update.of_sources + (other + i) * dim + f;
        store(of_source, load(of_source) + g);
        store(flows.data() + i * dim + f, g);
        of_target += g;
      }
      store(update.of_targets + place * dim + f, of_target);
    }
    product<R>(dim, flows.data(), 1, dim, x, update.of_weight, num, dim, true);
    product<R>(num, flows.data(), dim, 1, update.weight, out, dim, dim, false);
  }

  void backward(long block, long target) {
    const long place = block * pass.targets + target;
    const bool has_film = pass.film != nullptr;
    const R* kept = pass.state;
    for (long start = 0; has_film && start < pass.sources; start += CHUNK) {
      const int num = int(pass.sources - start < CHUNK ? pass.sources - start : CHUNK);
      const long edge = place * pass.sources + start;
      const R* x = kept != nullptr ? kept + edge * dim
                                   : read(block, target, start, num, edge, nullptr);
      const R* others = pass.film_sources + (block * pass.sources + start) * dim;
      messages(x, pass.film_targets + place * dim, others, num, both.data() + start * 2 * dim,
               message.data() + start * dim);
    }
    if (has_film) messages_backward(place, block);
    for (long start = 0; start < pass.sources; start += CHUNK) {
      const int num = int(pass.sources - start < CHUNK ? pass.sources - start : CHUNK);
      const long edge = place * pass.sources + start;
      const R* x = read(block, target, start, num, edge, nullptr, kept == nullptr);
      if (kept != nullptr) x = kept + edge * dim;
      if (pass.flows != nullptr)
        std::memcpy(flows.data(), pass.flows + edge * dim, sizeof(R) * num * dim);
      if (has_film) {
        const R* of_both = both.data() + start * 2 * dim;
        product<R>(2 * dim, of_both, 1, 2 * dim, x, pass.of_film, num, dim, true);
        product<R>(num, of_both, 2 * dim, 1, pass.film, flows.data(), 2 * dim, dim,
                   pass.flows != nullptr);
      }
      for (long u = pass.num_updates - 1; u >= 0; --u) {
        const R* before_it = before.data() + u * CHUNK * dim;
        const R* input = u == 0 ? pass.features + edge * dim : inputs.data() + u * CHUNK * dim;
        update_backward(pass.updates[u], before_it, input, place, block * pass.sources + start, num,
                        other.data());
        flows.swap(other);
      }
      if (pass.of_features != nullptr)
        std::memcpy(pass.of_features + edge * dim, flows.data(), sizeof(R) * num * dim);
    }
  }
};

template <class R>
void run(const Pass<R>& pass, bool is_backward, long first, long last) {
  Runner<R> runner(pass, is_backward);
  for (long place = first; place < last; ++place) {
    const long block = place / pass.targets, target = place % pass.targets;
    if (is_backward)
      runner.backward(block, target);
    else
      runner.forward(block, target);
  }
}

}  // namespace

// Targets from `first` to `last`, counted over all blocks.
extern "C" void film_float(const Pass<float>* pass, int is_backward, long first, long last) {
  run<float>(*pass, is_backward != 0, first, last);
}
extern "C" void film_double(const Pass<double>* pass, int is_backward, long first, long last) {
  run<double>(*pass, is_backward != 0, first, last);
}
