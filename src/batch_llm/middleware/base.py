"""Who may change an item on its way in, or a result on its way out."""

from abc import ABC, abstractmethod
from typing import Generic

from batch_llm.base import LLMWorkItem, TContext, TInput, TOutput, WorkItemResult


class Middleware(ABC, Generic[TInput, TOutput, TContext]):
    """Hooks around every item. An exception in one is logged and passed over."""

    @abstractmethod
    async def before_process(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext]
    ) -> LLMWorkItem[TInput, TOutput, TContext] | None:
        """Called once per item before its first attempt, in list order.

        Returns:
            The item to process, changed or another one; None skips the item.
        """

    @abstractmethod
    async def after_process(
        self, result: WorkItemResult[TOutput, TContext]
    ) -> WorkItemResult[TOutput, TContext]:
        """Called for each successful item, in reverse list order.

        Returns:
            The result to go on with; it may turn a success into a failure.
        """

    @abstractmethod
    async def on_error(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext], exception: Exception
    ) -> WorkItemResult[TOutput, TContext] | None:
        """Called once for an item that finally failed, in list order.

        Returns:
            A result to take instead of the failure, or None to leave it to the next.
        """


class BaseMiddleware(Middleware[TInput, TOutput, TContext]):
    """A middleware that changes nothing: override what you need."""

    async def before_process(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext]
    ) -> LLMWorkItem[TInput, TOutput, TContext] | None:
        """Pass the item on."""
        return work_item

    async def after_process(
        self, result: WorkItemResult[TOutput, TContext]
    ) -> WorkItemResult[TOutput, TContext]:
        """Pass the result on."""
        return result

    async def on_error(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext], exception: Exception
    ) -> WorkItemResult[TOutput, TContext] | None:
        """Leave the failure as it is."""
        return None
