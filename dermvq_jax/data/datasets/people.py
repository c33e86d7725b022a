"""Names of what tables say of the patients, as conditions."""

# In years.
AGES = (*(f'{a}-{a + 9}' for a in range(0, 80, 10)), '80+')
SEXES = ('female', 'male')
# Fitzpatrick's skin types.
SKIN_TYPES = ('I', 'II', 'III', 'IV', 'V', 'VI')


def age_name(years: float) -> str:
  """Returns which of `AGES` it is; '' if the age is not known (NaN)."""
  if not years >= 0:
    return ''
  return AGES[int(min(years // 10, len(AGES) - 1))]
