"""What a row shows without anybody judging it: language, form of the answer, where its prompt lies among others.

Below the stages, because two of them must count alike: what a release stores of its holdout (`publish`) is what the
monitor counts in production. No torch.
"""

from __future__ import annotations
