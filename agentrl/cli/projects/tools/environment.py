"""What the agent is asked, which tools it has, and what is paid: a calculator that writes Python."""

from agentrl import Env, tool


class Calculator(Env):
    """Work out an expression; Python may be run."""

    system_prompt = ""  # the bundled model has no words to spare; None lets tools and format be explained
    max_turns = 4
    required_fields = ("problem", "answer")
    example_rows = ({"problem": "123*45+678", "answer": "6213"}, {"problem": "871*32-456", "answer": "27416"})

    async def setup(self):
        self.python_session = await self.sandbox.open()  # an isolated interpreter; it closes with the episode

    def prompt(self, row):
        return row["problem"]

    @tool
    async def python(self, code: str) -> str:
        "Run Python; state is kept between calls."
        return (await self.python_session.run(code)).text

    # Another tool is another method. Its name, types and docstring are what the model is told, for which the
    # model needs a chat template with tools; the bundled one knows `python` alone.
    #
    # @tool
    # def look_up(self, word: str) -> str:
    #     "Look a word up."
    #     return self.words.get(word, "unknown")

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])  # the last \boxed{...} of the answer
