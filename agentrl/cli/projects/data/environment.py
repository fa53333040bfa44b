"""What the agent is asked, and what is paid: problems from a file, with answers to compare with."""

from agentrl_envs.math_with_python import MathWithPython


class Problems(MathWithPython):
    """Solve the problem of a row; Python may be run."""

    # From MathWithPython: the tool `python`, one interpreter per episode. Rows of other columns are renamed
    # in settings.toml: data.map = {problem = "question", answer = "final"}.

    system_prompt = ""  # the bundled model has no words to spare; None lets tools and format be explained
    max_turns = 4
    required_fields = ("problem", "answer")
    example_rows = ({"problem": "123*45+678", "answer": "6213"}, {"problem": "871*32-456", "answer": "27416"})

    def prompt(self, row):
        return row["problem"]  # for other models: + "\nPut the final answer in \\boxed{}."

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])  # mathematics that is equal counts: 1/2 and \frac{1}{2}
