"""CSV tables and file names."""

from pictures import read_csv

from dermvq_jax.generation import tables


def test_formulas_are_disarmed_and_numbers_are_not(tmp_path):
  values = ['=cmd()', '+1+1', '@x', '-x', '\t=1', 'a=b', '-1.5', '-inf', -2.5]
  rows = [{'name': value} for value in values]
  tables.write_csv(tmp_path / 'a.csv', rows)
  written = [row['name'] for row in read_csv(tmp_path / 'a.csv')]
  assert written[:5] == ["'" + value for value in values[:5]]
  assert written[5:] == ['a=b', '-1.5', '-inf', '-2.5']
