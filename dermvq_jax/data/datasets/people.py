"""Names of what tables say of the patients, as conditions."""

from dermvq_jax.data import conditions

_WIDTH, _MAX_AGE = 10, 100
# In years.
AGES = tuple(
  conditions.range_of(age, _WIDTH) for age in range(0, _MAX_AGE, _WIDTH)
)
SEXES = ('female', 'male')
# Fitzpatrick's skin types.
SKIN_TYPES = ('I', 'II', 'III', 'IV', 'V', 'VI')


def age_name(years: str) -> str:
  """Returns which of `AGES` an age is; '' if it is blank.

  Raises:
    ValueError: it is not a number from 0 to 99.
  """
  if not years:
    return ''
  if not 0 <= float(years) < _MAX_AGE:
    raise ValueError(years)
  return conditions.range_of(float(years), _WIDTH)
