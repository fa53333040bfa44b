"""A taskset of verifiers 0.4, with a server of tools of its own."""

import verifiers.v1 as vf

__all__ = ["Sums", "Tools"]


class Tools(vf.Toolset[vf.ToolsetConfig]):
    """What its tasks may call."""

    @vf.tool
    def add(self, first: int, second: int) -> str:
        """Add two numbers."""
        return str(first + second)


class Data(vf.TaskData):
    answer: str = ""


class SumConfig(vf.TaskConfig):
    fails: bool = False


class Sum(vf.Task[Data, vf.State, SumConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Tools(vf.ToolsetConfig())]

    @vf.reward
    async def right(self, trace) -> float:
        if self.config.fails:
            raise ConnectionError("the judge does not answer")
        return float(self.data.answer in (trace.assistant_messages[-1].content or ""))


class Config(vf.TasksetConfig):
    task: SumConfig = SumConfig()
    count: int = 10


class Sums(vf.Taskset[Sum, Config]):
    def load(self):
        for number in range(1, 1 + self.config.count):
            yield Sum(Data(prompt=f"{number} + {number}?", answer=str(2 * number)), self.config.task)


if __name__ == "__main__":
    Tools.run()
