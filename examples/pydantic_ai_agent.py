"""A PydanticAI agent as it is.

After an answer that does not fit, the agent asks once more by itself and tells the model why.
The processor is there for what the agent cannot mend: rate limits, outages, a second misfit.

Run it: pip install "batch-llm[pydantic-ai]" && python examples/pydantic_ai_agent.py
It needs no key: a function plays the model. To ask a real one, name it, with its key and
PydanticAI's extra for it: PYDANTIC_AI_MODEL=openai:gpt-5-mini python examples/pydantic_ai_agent.py
"""

import asyncio
import os

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelMessage, ModelResponse, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, PydanticAIStrategy

CITIES = ["Lisbon", "Nairobi", "Kyoto", "Lima", "Oslo"]


class City(BaseModel):
    country: str
    motto: str = Field(max_length=60)


def played_model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Answers by the agent's output tool, as a real model does."""
    city = next(str(part.content) for part in messages[0].parts if isinstance(part, UserPromptPart))
    countries = dict(zip(CITIES, ["Portugal", "Kenya", "Japan", "Peru", "Norway"], strict=True))
    answer = {"country": countries[city], "motto": f"{city} is worth the journey."}
    return ModelResponse([ToolCallPart(info.output_tools[0].name, answer)])


async def main() -> None:
    agent = Agent(
        os.environ.get("PYDANTIC_AI_MODEL") or FunctionModel(played_model),
        output_type=City,
        instructions="Name the city's country, and invent a motto for the city.",
    )
    strategy = PydanticAIStrategy(agent)
    async with ParallelBatchProcessor[str, City, None](
        config=ProcessorConfig(max_workers=3)
    ) as processor:
        for city in CITIES:
            await processor.add_work(LLMWorkItem(city, strategy, city))
        batch = await processor.process_all()

    for result in batch.results:
        answer = f"{result.output.country}: {result.output.motto}" if result.output else ""
        print(f"{result.item_id:8} {answer or result.error}")
    print(f"\n{batch.total_input_tokens} tokens in, {batch.total_output_tokens} out")


if __name__ == "__main__":
    asyncio.run(main())
