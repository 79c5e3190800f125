"""Recipes: a regular package, so that it wins over the namespace package `recipe` that TransferQueue installs."""
