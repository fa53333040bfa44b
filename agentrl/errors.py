"""The exceptions of agentrl.

::

    AgentRLError
    ├── ConfigError(ValueError)        settings, command lines and files that name them
    ├── PartError                      a loss, estimator, ... of a user's own raised
    ├── DataError(ValueError)          rows and recorded episodes that cannot be used
    ├── RendererError(ValueError)      a chat template that cannot be rendered append-only
    ├── PolicyError                    the engine that samples tokens
    │   ├── PolicyUnavailable          it died, or never became healthy
    │   ├── ContextOverflow            the prompt does not fit its context
    │   └── ParityError                engine and learner disagree about log-probabilities
    ├── LearnerError                   a step that cannot be taken (not finite, no trainable token)
    ├── WeightSyncError                a version that could not be published or loaded
    ├── CheckpointError                a checkpoint that cannot be written or read
    ├── DiskError                      a file of the run cannot be written
    ├── LedgerError                    an impossible transition of an episode
    ├── StallError(TimeoutError)       somebody was waited for longer than allowed
    └── Interrupted                    the user asked to stop; what was finished is saved

Environments and sandboxes have trees of their own (``agentrl_envs.EnvError``,
``agentrl_sandbox.SandboxError``): they do not know this package.
"""


class AgentRLError(Exception):
    """Base of every exception that agentrl raises on purpose."""


class ConfigError(AgentRLError, ValueError):
    """Settings are wrong; the text names file, line, value and what would be right."""


class PartError(AgentRLError):
    """A part of a user's own (loss, estimator, ...) raised; the text names it, its file and line."""


class DataError(AgentRLError, ValueError):
    """A data row or a recorded episode cannot be used."""


class RendererError(AgentRLError, ValueError):
    """A tokenizer or chat template cannot be rendered append-only."""


class PolicyError(AgentRLError):
    """The engine that samples tokens failed."""


class PolicyUnavailable(PolicyError):
    """The engine died or never became healthy."""


class ContextOverflow(PolicyError, ValueError):
    """A prompt does not fit the context of the model.

    Args:
        prompt_tokens: length of the prompt, in tokens.
        context_tokens: length of the context, in tokens.
    """

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and the context holds {context_tokens}; "
            "shorten the prompt or raise `engine.context_tokens`"
        )


class ParityError(PolicyError):
    """Engine and learner disagree about the log-probabilities of the same tokens."""


class LearnerError(AgentRLError):
    """The learner cannot take this step."""


class LearnerLost(LearnerError):
    """A process of the learner died; the run can go on from its checkpoint."""


class WeightSyncError(AgentRLError):
    """A policy version could not be published or loaded."""


class CheckpointError(AgentRLError):
    """A checkpoint cannot be written or read."""


class DiskError(AgentRLError):
    """A file of the run cannot be written; what was written before is intact.

    Args:
        path: the file.
        error: what the system said.
    """

    def __init__(self, path: object, error: OSError) -> None:
        super().__init__(
            f"cannot write {path}: {error.strerror}; free some space and continue with "
            "`agentrl train --resume`: what was learned so far is kept"
        )


class LedgerError(AgentRLError):
    """An episode was asked to make an impossible transition."""


class StallError(AgentRLError, TimeoutError):
    """Somebody was waited for longer than allowed.

    Args:
        owner: who was waited for, as a person would name it.
        waited_s: how long, in seconds.
        remedy: what the user can do about it.
    """

    def __init__(self, owner: str, waited_s: float, remedy: str = "") -> None:
        self.owner = owner
        self.waited_s = waited_s
        text = f"waited {waited_s:.0f} s for {owner}"
        super().__init__(f"{text}; {remedy}" if remedy else text)


class Interrupted(AgentRLError):
    """The user asked to stop; what was finished is saved."""


def told(name: str, text: str, otherwise: type[AgentRLError]) -> AgentRLError:
    """An error of another process, which came as the name of its class and its text.

    Args:
        name: of its class; attributes that it had besides its text are lost.
        text: what it said.
        otherwise: the class where this module has none of that name.
    """
    kind = globals().get(name)
    made = kind if isinstance(kind, type) and issubclass(kind, AgentRLError) else otherwise
    error = made.__new__(made, text)  # not called: some take more than a text
    Exception.__init__(error, text)
    return error
