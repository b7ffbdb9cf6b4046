"""ChatGLM-6B: the one generation that transformers has no network for.

Importing this makes ``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM`` know the model type ``chatglm``.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from glm_lightning.models.chatglm.configuration import ChatGLMConfig, config, is_old
from glm_lightning.models.chatglm.layout import constants, native, raw_config
from glm_lightning.models.chatglm.modeling import ChatGLMForCausalLM, ChatGLMModel

AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
AutoModel.register(ChatGLMConfig, ChatGLMModel, exist_ok=True)
AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)

READER = ChatGLMForCausalLM
"""The class that loads the official files."""

__all__ = [
    "READER",
    "ChatGLMConfig",
    "ChatGLMForCausalLM",
    "ChatGLMModel",
    "config",
    "constants",
    "is_old",
    "native",
    "raw_config",
]
