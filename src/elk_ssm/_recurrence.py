r"""A user's recurrence in canonical form: flat float states, hoisted closure.

The engine sees x_t = f(c, x_{t-1}, u_t) with x_t of shape `(D,)`, c everything that the
user's function closed over, and u_t a pytree slice. Leaves of the state that are not
floating point (counters, PRNG keys, masks) cannot be unknowns of a Newton iteration.
When they evolve on their own, independent of the floating-point leaves, they are
computed first by a cheap sequential scan and enter as inputs; otherwise an error says
so.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction, hoist
from elk_ssm._failing import OF_EVALUATE, Words, batch_hint, shape_of_step
from elk_ssm._jax import used_inputs
from elk_ssm._trees import Split, StateLayout, describe, is_float
from elk_ssm._types import Array, Dynamics, FlatStep, PyTree


@dataclass(frozen=True)
class Recurrence:
    """A recurrence that passed all checks.

    Attributes:
        function: The flat step, `function(consts, state (D,), input) -> (D,)`.
        consts: What the user's function closed over.
        initial: x_0, shape `(D,)`.
        inputs: Inputs with a leading time axis on every leaf, discrete leaves of the
            state included.
        length: Number of steps T.
        layout: Layout of the floating-point leaves.
        split: Which leaves of the state are floating point.
        discrete: Values of the other leaves after every step.
    """

    function: HoistedFunction
    consts: list[Any]
    initial: Array
    inputs: PyTree
    length: int
    layout: StateLayout
    split: Split
    discrete: list[Array]

    @property
    def primals(self) -> tuple[list[Any], Array, PyTree]:
        """What derivatives are with respect to: closure, x_0 and inputs."""
        return self.consts, self.initial, self.inputs

    @property
    def step(self) -> FlatStep:
        """The flat step with its closure filled in."""
        return lambda state, inputs: self.function(self.consts, state, inputs)

    @property
    def entry(self) -> PyTree:
        """Shape and dtype of one input, as the flat step takes it."""
        return without_time(self.inputs)

    def unflatten(self, vector: Array, entry: PyTree) -> tuple[PyTree, PyTree]:
        """Turn one flat state and input into the user's state and input."""
        user_input, others = entry
        return self.split.join(self.layout.unravel(vector), others), user_input

    def rebuild(self, flat: Array, every: int = 1) -> PyTree:
        """Turn flat states `(..., T // every, D)` into the user's pytree."""
        floats = jax.tree.leaves(self.layout.unravel(flat))
        lead = flat.shape[:-2]
        kept = [x[every - 1 :: every] for x in self.discrete]
        discrete = [jnp.broadcast_to(x, (*lead, *x.shape)) for x in kept]
        return self.split.join(floats, discrete)

    def flatten_states(self, states: PyTree, what: str) -> Array:
        """Turn a user's pytree of states over time into `(T, D)`, or explain."""
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.length, *x.shape), x.dtype),
            self.split.example,
        )
        same = jax.tree.structure(states) == self.split.treedef and all(
            jnp.shape(a) == b.shape
            for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(like))
        )
        if not same:
            raise ValueError(
                f"{what} must be the state with a leading time axis of length "
                f"{self.length}, {describe(like)}; got {describe(states)}."
            )
        floats, _ = self.split.part(states)
        return self.layout.ravel(floats)


def canonicalize(
    f: Dynamics, initial_state: PyTree, inputs: PyTree = None, length: int | None = None
) -> Recurrence:
    """Check a recurrence and bring it into canonical form.

    Raises:
        TypeError: f is not callable, or a state or result has an unusable dtype.
        ValueError: A shape, structure or length does not fit.
    """
    check_callable(f)
    check_state(jax.tree.map(as_array, initial_state))
    initial_state, inputs, length = check_problem(f, initial_state, inputs, length)
    split = Split.of(initial_state)
    discrete, before = _discrete_leaves(f, split, initial_state, inputs, length)
    floats, _ = split.part(initial_state)
    layout = StateLayout.of(floats)

    def flat_step(state: Array, entry: tuple[PyTree, list[Array]]) -> Array:
        user_input, others = entry
        after = f(split.join(layout.unravel(state), others), user_input)
        return layout.ravel(split.part(after)[0])

    flat = jax.ShapeDtypeStruct((layout.size,), layout.dtype)
    function, consts = hoist(flat_step, flat, without_time((inputs, before)))
    initial = layout.ravel(floats)
    return Recurrence(
        function, consts, initial, (inputs, before), length, layout, split, discrete
    )


def check_problem(
    f: Dynamics, initial_state: PyTree, inputs: PyTree, length: int | None
) -> tuple[PyTree, PyTree, int]:
    """Return state and inputs as arrays, and T; raise as `canonicalize` does."""
    check_callable(f)
    initial_state = jax.tree.map(as_array, initial_state)
    inputs = jax.tree.map(as_array, inputs)
    length = check_length(inputs, length)
    check_result(f, initial_state, without_time(inputs))
    return initial_state, inputs, length


def check_callable(f: Any, order: str = "evaluate(f, initial_state, inputs)") -> None:
    """Raise `TypeError` unless f is a function; the usual cause is the order."""
    if not callable(f):
        raise TypeError(
            "The first argument must be the recurrence f(state, input) -> state; got "
            f"{type(f).__name__}. The order is {order}."
        )


def without_time(tree: PyTree) -> PyTree:
    """Shape and dtype of one time step of every leaf."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)


def as_array(leaf: Any, name: str = "States and inputs") -> Any:
    """Return a leaf as an array of JAX; raise `TypeError` where there is none."""
    if isinstance(leaf, str | bytes):
        raise TypeError(f"{name} must be arrays; got the text {leaf!r}.")
    if isinstance(leaf, np.ndarray) and leaf.dtype.hasobject:
        raise TypeError(
            f"{name} must be arrays of numbers; got an object array, as NumPy makes of "
            f"rows of different lengths, of shape {leaf.shape}: pad the rows, or "
            "evaluate one after the other."
        )
    try:
        return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    except TypeError as error:
        raise TypeError(f"{name} must be arrays; got {type(leaf).__name__}.") from error


def check_length(
    inputs: PyTree, length: int | None, name: str = "inputs", least: int = 1
) -> int:
    """Return T, from the leading axes of the inputs or from `length`."""
    leaves = jax.tree.leaves(inputs)
    if any(leaf.ndim == 0 for leaf in leaves):
        raise ValueError(
            f"Every leaf of {name} needs a leading time axis; got the scalar leaves of "
            f"{describe(inputs)}. A Python list is a pytree of its entries: pass "
            "jnp.asarray(...) for a sequence of numbers."
        )
    found = {leaf.shape[0] for leaf in leaves}
    if len(found) > 1:
        raise ValueError(
            f"The leaves of {name} must share their leading time axis; got lengths "
            f"{sorted(found)} in {describe(inputs)}."
        )
    if not found and length is None:
        raise ValueError(f"Without {name}, pass length=T, the number of steps.")
    if found and length is not None and found != {length}:
        hint = ""
        if all(leaf.shape[1:2] == (length,) for leaf in leaves):
            hint = " Their first axis looks like a batch axis: use jax.vmap."
        raise ValueError(
            f"length is {length}, but {name} have {found.pop()} steps.{hint}"
        )
    steps: Any = found.pop() if found else length
    if isinstance(steps, bool) or not hasattr(steps, "__index__"):
        raise TypeError(f"length must be an integer; got {steps!r}.")
    if (steps := int(steps)) < least:
        few = "at least one step" if least else "no negative number of steps"
        raise ValueError(f"There must be {few}; got T = {steps}.")
    return steps


def check_state(state: PyTree) -> None:
    """Refuse states without floating-point leaves, in half precision, or complex."""
    leaves = jax.tree.leaves(state)
    for leaf in leaves:
        dtype = jnp.result_type(leaf)
        if dtype in (jnp.bfloat16, jnp.float16) or jnp.issubdtype(
            dtype, jnp.complexfloating
        ):
            raise TypeError(
                f"State leaves must be float32 or float64; got {dtype.name} in "
                f"{describe(state)}. Half precision rounds away the steps of the "
                "iteration: cast the state to float32 (and back inside f if the cell "
                "computes in half precision); split complex states into two real parts."
            )
    if leaves and all(math.prod(jnp.shape(leaf)) == 0 for leaf in leaves):
        raise ValueError(f"The state has no entries; got {describe(state)}.")
    if not any(is_float(leaf) for leaf in leaves):
        raise TypeError(
            "The state needs a floating-point leaf; got "
            f"{describe(state)}. If a Python integer was meant as a number, write it "
            "with a decimal point; a purely discrete recurrence is elk.sequential's."
        )


def check_result(f: Dynamics, state: PyTree, first_input: PyTree) -> None:
    """Check that f keeps the state's structure, shapes and dtypes."""
    expected = Split.of(state).example
    check_same(shape_of_step(f, expected, first_input), expected, first_input)


def check_same(
    found: PyTree, expected: PyTree, entry: PyTree, words: Words = OF_EVALUATE
) -> None:
    """Check that what f returns has structure, shapes and dtypes of the state."""
    structure: Any = jax.tree.structure(found)
    if structure != jax.tree.structure(expected):
        hint = ""
        if words == OF_EVALUATE and isinstance(found, tuple) and len(found) == 2:
            hint = " For a step that returns (carry, output) use elk.scan."
        raise ValueError(
            f"f must return a {words.state} of the same structure, "
            f"{describe(expected)}; got {describe(found)}.{hint}"
        )
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found))
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        advice = f"Cast {words.initial} or {words.inputs} so that they agree."
        raise ValueError(
            f"f must keep the shapes and dtypes of the {words.state}; it takes "
            f"{describe(expected)} and returns {describe(found)}. "
            f"{batch_hint(expected, entry, words) or advice}"
        )


def _discrete_leaves(
    f: Dynamics, split: Split, state: PyTree, inputs: PyTree, length: int
) -> tuple[list[Array], list[Array]]:
    """Evolve the leaves that are not floating point, alone.

    Returns:
        Their values after and before every step, each with a leading time axis.
    """
    floats, discrete = split.part(state)
    if not discrete:
        return [], []

    def discrete_after(floats: list, discrete: list, user_input: PyTree) -> list:
        return split.part(f(split.join(floats, discrete), user_input))[1]

    first = jax.tree.map(lambda x: x[0], inputs)
    if depends_on_first(discrete_after, floats, discrete, first):
        raise TypeError(
            "Leaves of the state that are not floating point must evolve "
            f"independently of those that are; in {describe(state)} they do not. "
            "Evaluate such a recurrence with elk.sequential, or make them floats."
        )

    def body(carry: list, user_input: PyTree) -> tuple[list, tuple[list, list]]:
        after = discrete_after(floats, carry, user_input)
        return after, (after, carry)

    return jax.lax.scan(body, discrete, inputs, length=length)[1]


def depends_on_first(function: Any, first: PyTree, *rest: PyTree) -> bool:
    """Say whether any result of `function` can depend on its first argument."""
    closed = jax.make_jaxpr(function)(first, *rest)
    return any(used_inputs(closed.jaxpr)[: len(jax.tree.leaves(first))])
