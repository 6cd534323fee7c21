"""The demo: the main job from nothing, on images and models that it makes itself."""

from pipeline.demo.run import run_demo

__all__ = ["run_demo"]
