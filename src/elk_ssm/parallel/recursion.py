r"""A recursion over time as a value: what `driver.run` runs anywhere.

    step         (state, entry) -> (state, output)      one step at a time
    element      what a run of steps does, whatever state enters it
    combine      two neighbouring runs are one

Nothing in a recursion knows a backend, a device or a direction: "earlier" and "later"
are in the order in which the steps are run, which is backwards in time for a reversed
run. A recursion is a subclass that holds its entries and the state before the first.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from elk_ssm.parallel.every_step import at_every_step

State = TypeVar("State")
Element = TypeVar("Element")


class Recursion(ABC, Generic[State, Element]):
    """A recursion with its data.

    Attributes:
        entries: What the steps are made of, leaves with a leading axis T.
        initial: The state before the first step.
        fan_in: How many elements may be joined at once by written-out combinations, of
            which an accelerator then runs a level in a kernel or two; see `tree`. Zero
            for a combination that is too large to be repeated: a loop holds it once.
        rare: Whether this is what a program seldom falls back to, which is rather to
            compile fast than to be few kernels on an accelerator.
    """

    entries: Any
    initial: State
    rare: bool = False

    @property
    def fan_in(self) -> int:
        """Zero, unless a subclass says otherwise."""
        return 0

    @abstractmethod
    def step(self, state: State, entry: Any) -> tuple[State, Any]:
        """Return the state after one step, and the output of that step."""

    @abstractmethod
    def element(self, entry: Any) -> Element:
        """Return one step as an element."""

    @abstractmethod
    def combine(self, earlier: Element, later: Element) -> Element:
        """Join two runs, or many along a leading axis; zeros must not fail."""

    @abstractmethod
    def known(self, state: State) -> Element:
        """Return the run that ends in `state` whatever enters it."""

    @abstractmethod
    def state(self, element: Element) -> State:
        """Return where a run ends that begins with a known one; leading axes free."""

    @abstractmethod
    def nothing(self) -> Element:
        """Return the run of no steps."""

    # ------------------------------------------- what may be had for less, or better

    def append(self, run: Element, entry: Any) -> Element:
        """Return the run with one step more."""
        return self.combine(run, self.element(entry))

    def act(self, run: Element, state: State) -> State:
        """Return where a run ends that `state` enters."""
        return self.state(self.combine(self.known(state), run))

    def join(self, earlier: Element, later: Element, again: Element) -> Element:
        """As `combine`; `again` is `later`, for a part that is a kernel of its own.

        A compiler that sees one array in two kernels may write a copy for both.
        """
        del again
        return self.combine(earlier, later)

    @property
    def few(self) -> int:
        """How many elements `through` takes, instead of further levels of a tree."""
        return self.fan_in

    def through(self, elements: Element, start: State) -> State:
        """Return the state after each of a few elements, leading axis n.

        One after the other changes all states that come after it: without branches,
        which an accelerator would run as kernels of their own.
        """
        count = jax.tree.leaves(elements)[0].shape[0]
        act, place = jax.vmap(self.act, (None, 0)), jnp.arange(count)

        def after(j: int, new: jax.Array, old: jax.Array) -> jax.Array:
            reached = (place >= j).reshape(-1, *[1] * (old.ndim - 1))
            return jnp.where(reached, new, old)

        states = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), start)
        for j in range(count):
            moved = act(jax.tree.map(lambda x, j=j: x[j], elements), states)
            states = jax.tree.map(partial(after, j), moved, states)
        return states

    def prepared(self) -> "Recursion":
        """Return the recursion with what is shared by two runs through its steps."""
        return self

    def outputs(self, before: State, entries: Any, after: State) -> Any:
        """Return the outputs of all steps at once, leading axis T.

        A step from every state before restores in a prefix run what the step is
        careful about and the combination of elements is not.

        Args:
            before: The state before each step.
            entries: The steps.
            after: The state after each step, as the elements give it.
        """
        del after
        return at_every_step(self.step, before, entries, written=not self.rare)[1]
