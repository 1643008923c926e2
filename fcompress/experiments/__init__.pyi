from .recipe import Recipe as Recipe
