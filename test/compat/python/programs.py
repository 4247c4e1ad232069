"""What the Python suites share: the analysis that they run, and what must come out of it."""

import time

CSV = "city,year,sales\nOslo,2024,10\nOslo,2025,14\nBergen,2024,7\nBergen,2025,9\n"

ANALYSIS = """
import os, pandas as pd, matplotlib.pyplot as plt, time
df = pd.read_csv('/home/user/sales.csv')
for year, part in df.groupby('year'):
    print(year, part.sales.sum(), flush=True)
    while not os.path.exists('heard'): time.sleep(0.02) # stdout streams while the cell runs, or it never ends
totals = df.groupby('city', as_index=False).sales.sum()
plt.bar(totals.city, totals.sales, label='Sales'); plt.title('Sales by city'); plt.show()
fig, ax = plt.subplots(); ax.plot(df.year, df.sales); ax.set_title('Over time'); plt.show()
totals
"""

TOTALS = [("Bergen", 16), ("Oslo", 24)]


def until(condition, deadline=10.0):
    """Asks again every few milliseconds; fails when the condition does not hold in time."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
