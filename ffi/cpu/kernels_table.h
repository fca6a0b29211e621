// The table of kernels of one instruction set: products of BANDJAX_ISA, all others of BANDJAX_BASE.
#ifndef BANDJAX_FFI_CPU_KERNELS_TABLE_H_
#define BANDJAX_FFI_CPU_KERNELS_TABLE_H_

#include "kernels.h"

namespace bandjax {
namespace BANDJAX_BASE {
template <bool kAnalysis>
void TransformTyped(const TransformArgs& args, Pool* pool);
template <bool kAnalysis>
void FourierTyped(const FourierArgs& args, Pool* pool);
template <bool kGradient>
void ColumnsTyped(const ColumnArgs& args, Pool* pool);
template <bool kGradient>
void DirectTyped(const DirectArgs& args, Pool* pool);
template <bool kGradient>
void WindowsTyped(const WindowArgs& args, Pool* pool);
template <bool kPack>
void PackTyped(const PackArgs& args, Pool* pool);
template <bool kPack>
void BitsTyped(const BitsArgs& args, Pool* pool);
}  // namespace BANDJAX_BASE

extern const Kernels BANDJAX_TABLE;
const Kernels BANDJAX_TABLE = {
    BANDJAX_NAME,
    &BANDJAX_BASE::TransformTyped<true>,
    &BANDJAX_BASE::TransformTyped<false>,
    &BANDJAX_BASE::FourierTyped<true>,
    &BANDJAX_BASE::FourierTyped<false>,
    &BANDJAX_ISA::MultiplySumTyped,
    &BANDJAX_ISA::InputProductTyped,
    &BANDJAX_ISA::FilterProductTyped,
    &BANDJAX_BASE::ColumnsTyped<false>,
    &BANDJAX_BASE::ColumnsTyped<true>,
    &BANDJAX_BASE::DirectTyped<false>,
    &BANDJAX_BASE::DirectTyped<true>,
    &BANDJAX_BASE::WindowsTyped<false>,
    &BANDJAX_BASE::WindowsTyped<true>,
    &BANDJAX_BASE::PackTyped<true>,
    &BANDJAX_BASE::PackTyped<false>,
    &BANDJAX_BASE::BitsTyped<true>,
    &BANDJAX_BASE::BitsTyped<false>,
};
}  // namespace bandjax

#endif  // BANDJAX_FFI_CPU_KERNELS_TABLE_H_
