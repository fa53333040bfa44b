"""A custom environment: count the words of a text, with a tool that counts letters."""

from agentrl import Env, tool


class WordCount(Env):
    """How many words are in the text? Answer in a box."""

    example_rows = ({"text": "to be or not to be", "answer": 6}, {"text": "learning by doing", "answer": 3})

    def prompt(self, row):
        return f"How many words are in: {row['text']!r}? Put the number in \\boxed{{}}."

    @tool
    def letters(self, word: str) -> int:
        "Count the letters of a word."
        return len(word)

    def reward(self, row, answer):
        return self.grade(answer, len(row["text"].split()))
