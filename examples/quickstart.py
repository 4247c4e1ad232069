"""One analysis from a CSV file to a chart, with the E2B SDK as it comes from PyPI.

    pip install e2b-code-interpreter
    export E2B_API_URL=… E2B_SANDBOX_URL=… E2B_API_KEY=…     (printed by `npm start`)
    python examples/quickstart.py
"""

import base64

from e2b_code_interpreter import Sandbox

CSV = "city,year,sales\nOslo,2025,10\nOslo,2026,14\nBergen,2025,7\nBergen,2026,9\n"

ANALYSIS = """
import pandas as pd, matplotlib.pyplot as plt
df = pd.read_csv('sales.csv')
totals = df.groupby('city', as_index=False).sales.sum()
plt.bar(totals.city, totals.sales)
plt.title('Sales by city')
plt.show()
totals
"""

with Sandbox.create() as sandbox:
    print(f"sandbox {sandbox.sandbox_id}")

    sandbox.files.write("/home/user/sales.csv", CSV)
    execution = sandbox.run_code(ANALYSIS)
    if execution.error:
        raise SystemExit(execution.error.traceback)

    result = next(result for result in execution.results if result.chart)
    png = base64.b64decode(result.png)
    print(f'chart "{result.chart.title}" ({result.chart.type.value}), also as a PNG of {len(png)} bytes')
    for bar in result.chart.elements:
        print(f"  {bar.label}: {bar.value}")

    table = next(result for result in execution.results if result.is_main_result)
    print(f"table {table.data}")

    # Variables are still there in the next cell: it is the same kernel.
    best = sandbox.run_code('print(totals.loc[totals.sales.idxmax(), "city"])')
    print(f"best city: {''.join(best.logs.stdout).strip()}")
