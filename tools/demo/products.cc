// A matrix product for XLA's CPU programs: bfloat16 in, float32 out, by the function that `use_product` is given.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Factor = ffi::Buffer<ffi::BF16, 2>;
using Sum = ffi::Buffer<ffi::F32, 2>;

constexpr int kRowMajor = 101, kPlain = 111, kTransposed = 112, kRowsAtOnce = 32;

using Product = void (*)(int layout, int turn_a, int turn_b, int rows, int columns, int depth, float alpha,
                         const void* a, int stride_a, const void* b, int stride_b, float beta, void* c, int stride_c);
Product product = nullptr;

struct Work {
  const uint16_t *a, *b;
  float* c;
  int rows, columns, depth, stride_a, stride_b;
  bool turn_a, turn_b;
  int part_rows, num_parts;
  std::atomic<int> begun{0}, done{0};

  // Makes parts until none is left that nobody makes.
  void help() {
    for (int part; (part = begun.fetch_add(1)) < num_parts;) {
      const int first = part * part_rows, count = std::min(part_rows, rows - first);
      const uint16_t* from = a + (turn_a ? first : int64_t{first} * stride_a);
      product(kRowMajor, turn_a ? kTransposed : kPlain, turn_b ? kTransposed : kPlain, count, columns, depth, 1.0f,
              from, stride_a, b, stride_b, 0.0f, c + int64_t{first} * columns, columns);
      done.fetch_add(1);
    }
  }
};

// c (rows, columns) = a (rows, depth) b (depth, columns); `turn_a`, `turn_b` say that a, b lie there transposed.
ffi::Error Multiply(ffi::ThreadPool pool, Factor a, Factor b, ffi::Result<Sum> c, bool turn_a, bool turn_b) {
  auto work = std::make_shared<Work>();
  work->a = reinterpret_cast<const uint16_t*>(a.untyped_data());
  work->b = reinterpret_cast<const uint16_t*>(b.untyped_data());
  work->c = c->typed_data();
  work->rows = c->dimensions()[0];
  work->columns = c->dimensions()[1];
  work->depth = a.dimensions()[turn_a ? 0 : 1];
  work->stride_a = a.dimensions()[1];
  work->stride_b = b.dimensions()[1];
  work->turn_a = turn_a;
  work->turn_b = turn_b;
  const int threads = std::max<int>(1, pool.num_threads());
  const int even = (work->rows + threads - 1) / threads;
  work->part_rows = (even + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
  work->num_parts = (work->rows + work->part_rows - 1) / work->part_rows;
  for (int helper = 1; helper < work->num_parts; ++helper) pool.Schedule([work] { work->help(); });
  work->help();
  // Whoever has begun a part makes it without waiting for anything, so this ends even if no helper ever ran.
  while (work->done.load() < work->num_parts) __builtin_ia32_pause();
  return ffi::Error::Success();
}

}  // namespace

extern "C" void use_product(void* function) { product = reinterpret_cast<Product>(function); }

XLA_FFI_DEFINE_HANDLER_SYMBOL(multiply, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Factor>()
                                  .Arg<Factor>()
                                  .Ret<Sum>()
                                  .Attr<bool>("turn_a")
                                  .Attr<bool>("turn_b"));
