"""The four inner loops of a ray, as vectors of the processor.

A compiler that sees these loops one number at a time makes gathers of them, which cost more
than the arithmetic on many processors, or scalar code. Here each plane's four shares lie side
by side and meet four voxels that are loaded as two pairs, because neighbours along z are
neighbours in memory. Each loop stands twice: as it is built, and plainly, which runs where
nothing is compiled.

Index and share have room for whole vectors: ``n`` is padded to the next multiple of ``LANES``
with planes of no share on the last plane's voxels.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8  # planes laid at a time; float32 in a vector of 256 bits
SLAB_BITS = 3
SLAB = 1 << SLAB_BITS  # planes along z that lie together; see recon.projector.RayModel
UNROLL = 4  # planes summed apart, so that no sum waits for the one before

_FAST = ("fast",)
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class _Array:
    """Where an array's values begin, and of which kind they are."""

    def __init__(self, context, builder, array_type, value) -> None:
        self.data = context.make_array(array_type)(context, builder, value).data
        self.ir = context.get_data_type(array_type.dtype)
        self.align = context.get_abi_sizeof(self.ir)


class _Build:
    """Writes a loop's instructions."""

    def __init__(self, context, builder, signature, args) -> None:
        self.context, self.b = context, builder
        self.types, self.args = signature.args, args

    def array(self, k):
        return _Array(self.context, self.b, self.types[k], self.args[k])

    def number(self, k, wanted):
        """Give an argument in the type that is wanted."""
        return self.context.cast(self.b, self.args[k], self.types[k], wanted)

    def constant(self, ir_type, values):
        vector = ir.VectorType(ir_type, len(values))
        return ir.Constant(vector, [ir.Constant(ir_type, v) for v in values])

    def take(self, vector, *lanes):
        """Pick lanes of a vector, in any order."""
        none = ir.Constant(vector.type, ir.Undefined)
        return self.b.shuffle_vector(vector, none, self.constant(_I32, lanes))

    def all(self, value, n):
        """Repeat a number in all lanes."""
        none = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
        return self.take(self.b.insert_element(none, value, _I32(0)), *[0] * n)

    def join(self, low, high):
        lanes = range(low.type.count + high.type.count)
        return self.b.shuffle_vector(low, high, self.constant(_I32, lanes))

    def as_real(self, vector, ir_type):
        """Give a vector of reals in another precision."""
        wanted = ir.VectorType(ir_type, vector.type.count)
        if vector.type == wanted:
            return vector
        if ir_type == ir.DoubleType():
            return self.b.fpext(vector, wanted)
        return self.b.fptrunc(vector, wanted)

    def load(self, array, k, n):
        """Load ``n`` values from place ``k`` on."""
        vector = ir.VectorType(array.ir, n).as_pointer()
        value = self.b.load(self.b.bitcast(self.b.gep(array.data, [k]), vector))
        value.align = array.align
        return value

    def store(self, value, array, k):
        place = self.b.bitcast(self.b.gep(array.data, [k]), value.type.as_pointer())
        self.b.store(value, place).align = array.align

    def one(self, array, k):
        """Load a single value."""
        return self.b.load(self.b.gep(array.data, [k]))

    def index(self, array, k):
        return self.b.zext(self.one(array, k), _I64)

    def mul_add(self, x, y, z):
        return self.b.fadd(self.b.fmul(x, y, flags=_FAST), z, flags=_FAST)

    def least(self, x, y):
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

    def loop(self, start, stop, step):
        return cgutils.for_range_slice(self.b, start, stop, _I64(step), intp=_I64)


def _as_vectors(build):
    """Take the plain function in place of the built one where nothing is compiled."""

    def choose(plain):
        return plain if config.DISABLE_JIT else build  # type: ignore[attr-defined]

    return choose


# ---- planes


@intrinsic
def _lay_samples(
    context, first, n, slope_u, slope_v, offset_u, offset_v, centre, to_table, last, step_mm,
    block_p, one_p, block_v, one_v, step_u, index, entry, share,
):  # fmt: skip
    del context
    signature = types.void(
        first, n, slope_u, slope_v, offset_u, offset_v, centre, to_table, last, step_mm,
        block_p, one_p, block_v, one_v, step_u, index, entry, share,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        w = _Build(context, builder, signature, args)
        b = builder
        index, entry, share = (w.array(k) for k in (15, 16, 17))
        real, whole = ir.VectorType(share.ir, LANES), ir.VectorType(_I32, LANES)
        kind = signature.args[17].dtype
        first, n = (w.number(k, types.int32) for k in (0, 1))
        slope_u, slope_v, offset_u, offset_v, centre, to_table = (
            w.all(w.number(k, kind), LANES) for k in range(2, 8)
        )
        last = w.all(w.number(8, types.int32), LANES)
        step_mm = w.all(w.number(9, kind), LANES)
        block_p, one_p, block_v, one_v, step_u = (
            w.all(w.number(k, types.int32), LANES) for k in range(10, 15)
        )
        end = w.all(b.sub(b.add(first, n), _I32(1)), LANES)
        lanes = w.constant(_I32, range(LANES))
        bits = w.constant(_I32, [SLAB_BITS] * LANES)
        rest = w.constant(_I32, [SLAB - 1] * LANES)
        one = w.constant(_I32, [1] * LANES)
        half = w.constant(share.ir, [0.5] * LANES)
        none = w.constant(share.ir, [0.0] * LANES)

        def part(place, block, step):
            inside = b.mul(b.and_(place, rest), step)
            return b.add(b.mul(b.lshr(place, bits), block), inside)

        with w.loop(_I64(0), b.sext(n, _I64), LANES) as (k, _):
            raw = b.add(w.all(b.add(first, b.trunc(k, _I32)), LANES), lanes)
            i = w.least(raw, end)
            p = b.sitofp(i, real)
            u, v = w.mul_add(p, slope_u, offset_u), w.mul_add(p, slope_v, offset_v)
            iu, iv = b.fptosi(u, whole), b.fptosi(v, whole)
            fu = b.fsub(u, b.sitofp(iu, real), flags=_FAST)
            fv = b.fsub(v, b.sitofp(iv, real), flags=_FAST)
            j = b.add(part(b.add(i, one), block_p, one_p), part(iv, block_v, one_v))
            w.store(b.add(j, b.mul(iu, step_u)), index, k)
            away = b.fsub(p, centre, flags=_FAST)
            away = b.select(b.fcmp_ordered("<", away, none), b.fneg(away), away)
            place = b.fptosi(w.mul_add(away, to_table, half), whole)
            w.store(w.least(place, last), entry, k)
            length = b.select(b.icmp_signed("<=", raw, end), step_mm, none)
            high = b.fmul(length, fu, flags=_FAST)
            low = b.fsub(length, high, flags=_FAST)
            low_v, high_v = b.fmul(low, fv, flags=_FAST), b.fmul(high, fv, flags=_FAST)
            low, high = b.fsub(low, low_v, flags=_FAST), b.fsub(high, high_v, flags=_FAST)
            four = w.join(w.join(low, low_v), w.join(high, high_v))
            by_plane = [m * LANES + q for q in range(LANES) for m in range(4)]
            w.store(w.take(four, *by_plane), share, b.mul(k, _I64(4)))
        return context.get_dummy_value()

    return signature, codegen


@_as_vectors(_lay_samples)
def lay_samples(
    first, n, slope_u, slope_v, offset_u, offset_v, centre, to_table, last, step_mm, block_p,
    one_p, block_v, one_v, step_u, index, entry, share,
):  # fmt: skip
    """Write where each plane's four voxels begin, their shares, and the place in the TOF table.

    Plane ``first + k`` crosses the ray at ``p * slope + offset`` along the two other axes, in
    voxels of the padded image. Along the principal axis and the second of the others (``v``) a
    place is ``block`` for each ``SLAB`` planes and ``one`` for each of the rest.
    """
    for k in range(-(-n // LANES) * LANES):
        i = min(first + k, first + n - 1)
        u, v = i * slope_u + offset_u, i * slope_v + offset_v
        iu, iv, ip = int(u), int(v), i + 1
        index[k] = (
            (ip >> SLAB_BITS) * block_p + (ip & (SLAB - 1)) * one_p
            + (iv >> SLAB_BITS) * block_v + (iv & (SLAB - 1)) * one_v + iu * step_u
        )  # fmt: skip
        entry[k] = min(int(abs(i - centre) * to_table + 0.5), last)
        length = step_mm if k < n else 0.0
        for m in range(4):
            along_u = u - iu if m >> 1 else 1 - (u - iu)
            along_v = v - iv if m & 1 else 1 - (v - iv)
            share[4 * k + m] = length * along_u * along_v


@intrinsic
def _weigh(context, table, entry, n, share):
    del context
    signature = types.void(table, entry, n, share)

    def codegen(context, builder, signature, args):
        w = _Build(context, builder, signature, args)
        table, entry, share = w.array(0), w.array(1), w.array(3)
        with w.loop(_I64(0), w.number(2, types.int64), UNROLL) as (k, _):
            for m in range(UNROLL):
                km = builder.add(k, _I64(m))
                weight = w.all(w.one(table, w.index(entry, km)), 4)
                k4 = builder.mul(km, _I64(4))
                w.store(builder.fmul(w.load(share, k4, 4), weight, flags=_FAST), share, k4)
        return context.get_dummy_value()

    return signature, codegen


@_as_vectors(_weigh)
def weigh(table, entry, n, share):
    """Multiply each plane's shares by its TOF weight."""
    for k in range(-(-n // UNROLL) * UNROLL):
        share[4 * k : 4 * k + 4] *= table[entry[k]]


# ---- voxels


def _load_four(w, image, index, k, step_u):
    """Load a plane's four voxels; give the places of its two pairs too."""
    low = w.index(index, k)
    high = w.b.add(low, step_u)
    return low, high, w.join(w.load(image, low, 2), w.load(image, high, 2))


@intrinsic
def _gather_pairs(context, image, index, share, n, step_u):
    del context
    signature = image.dtype(image, index, share, n, step_u)

    def codegen(context, builder, signature, args):
        w = _Build(context, builder, signature, args)
        b = builder
        image, index, share = (w.array(k) for k in range(3))
        n, step_u = (w.number(k, types.int64) for k in (3, 4))
        zero = w.constant(image.ir, [0.0] * 4)
        sums = [cgutils.alloca_once_value(b, zero) for _ in range(UNROLL)]
        with w.loop(_I64(0), n, UNROLL) as (k, _):
            for m, total in enumerate(sums):
                km = b.add(k, _I64(m))
                _, _, four = _load_four(w, image, index, km, step_u)
                shares = w.as_real(w.load(share, b.mul(km, _I64(4)), 4), image.ir)
                b.store(w.mul_add(four, shares, b.load(total)), total)
        total = b.load(sums[0])
        for other in sums[1:]:
            total = b.fadd(total, b.load(other), flags=_FAST)
        result = b.extract_element(total, _I32(0))
        for lane in range(1, 4):
            result = b.fadd(result, b.extract_element(total, _I32(lane)), flags=_FAST)
        return result

    return signature, codegen


@_as_vectors(_gather_pairs)
def gather_pairs(image, index, share, n, step_u):
    """Sum an image along a ray whose voxels lie in pairs: at ``j`` and ``step_u`` further."""
    total = image.dtype.type(0)
    for k in range(-(-n // UNROLL) * UNROLL):
        j = index[k]
        for m, place in enumerate((j, j + 1, j + step_u, j + step_u + 1)):
            total += share[4 * k + m] * image[place]
    return total


@intrinsic
def _spread_pairs(context, image, value, index, share, n, step_u):
    del context
    signature = types.void(image, value, index, share, n, step_u)

    def codegen(context, builder, signature, args):
        w = _Build(context, builder, signature, args)
        image, index, share = w.array(0), w.array(2), w.array(3)
        value = w.all(w.number(1, signature.args[0].dtype), 4)
        n, step_u = (w.number(k, types.int64) for k in (4, 5))
        with w.loop(_I64(0), n, 1) as (k, _):
            low, high, four = _load_four(w, image, index, k, step_u)
            shares = w.as_real(w.load(share, builder.mul(k, _I64(4)), 4), image.ir)
            four = w.mul_add(shares, value, four)
            w.store(w.take(four, 0, 1), image, low)
            w.store(w.take(four, 2, 3), image, high)
        return context.get_dummy_value()

    return signature, codegen


@_as_vectors(_spread_pairs)
def spread_pairs(image, value, index, share, n, step_u):
    """Add ``value`` to the image along a ray: the transpose of ``gather_pairs``."""
    for k in range(n):
        j = index[k]
        for m, place in enumerate((j, j + 1, j + step_u, j + step_u + 1)):
            image[place] += share[4 * k + m] * value
