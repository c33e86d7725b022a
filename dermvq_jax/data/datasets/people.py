"""Names of what tables say of the patients, as conditions."""

# Decades, in years. Tables of the ISIC Archive round ages to 5 years.
AGES = tuple(f'{age}-{age + 9}' for age in range(0, 100, 10))
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
  if not 0 <= float(years) < 10 * len(AGES):
    raise ValueError(years)
  return AGES[int(float(years)) // 10]
