"""A researcher whose reading does not fit its context: what was read is left out, notes stay.

    agentrl train examples/agents/compacting_researcher.py --model ...

With a method of its own, as here, an environment decides what goes; without one, `rollout.compact` does.
"""

from agentrl_envs import Env, tool

PAGES = {f"page{n}": f"Page {n}. " + "Nothing of interest here. " * 12 for n in range(1, 7)}


class Researcher(Env):
    """Find the sum of the numbers that are hidden in some pages."""

    max_turns = 12
    example_rows = ({"id": "two", "numbers": {"page2": 17, "page5": 25}},)

    def prompt(self, row):
        self.hidden, self.found = row["numbers"], {}
        return f"Add the numbers hidden in {', '.join(PAGES)}. Write a page's name as code to read it."

    @tool(name="python")
    def read(self, code: str) -> str:
        "Read a page by its name."
        name = code.strip()
        if name not in PAGES:
            return f"no page {name!r}"
        if name in self.hidden:
            self.found[name] = self.hidden[name]
        return PAGES[name] + (f"The number is {self.hidden[name]}." if name in self.hidden else "")

    async def compact(self, context):
        """Cut what was read before, then leave out all but the newest turn."""
        if not context.truncate(chars=10, keep=1):
            context.drop(keep=1)
        notes = ", ".join(f"{page}: {number}" for page, number in self.found.items())
        last = context.messages[-1]
        context.messages[-1] = {**last, "content": f"{last['content']}\n[found so far: {notes or 'nothing'}]"}

    def reward(self, row, answer):
        return (answer or "").strip() == str(sum(row["numbers"].values()))
