"""What a user can get wrong, and what a run can."""


class UserError(ValueError):
  """One line: what was wrong, what was given and what would be right."""


class DivergedError(UserError):
  """A run whose loss is no longer finite."""
