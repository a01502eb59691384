"""The page that the report fills in: one file, no scripts, light and dark.

`PAGE` is a string.Template; what goes into it is already HTML.
"""

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  --paper: #fcfbf8; --ink: #1d1c1a; --soft: #6b6862; --rule: #e3e0d8; --tint: #f3f1ea;
  --one: #0f6b6b; --two: #b4561f; --base: #8b877f; --right: #1f7a45; --wrong: #b3372f;
  --serif: Charter, 'Bitstream Charter', 'Iowan Old Style', Georgia, serif;
  --sans: system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif;
  --mono: ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161719; --ink: #e6e3dc; --soft: #a09c94; --rule: #303236; --tint: #1e2023;
    --one: #5cc2bd; --two: #e59a62; --base: #8f8b84; --right: #6cc48f; --wrong: #ee8a80;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 3.5rem 1.5rem 4rem; max-width: 62rem;
  background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 var(--serif); font-variant-numeric: tabular-nums;
}
p { margin: 0 0 1em; max-width: 42rem; text-wrap: pretty; }
h1 { margin: 0; font-size: 2.25rem; line-height: 1.15; font-weight: 600; }
h2 { margin: 4rem 0 .5rem; font-size: 1.4rem; line-height: 1.25; font-weight: 600; }
h3 { margin: 0 0 .5rem; font: 600 .9375rem/1.4 var(--sans); }
.facts { margin: .6rem 0 2rem; font: .875rem/1.5 var(--sans); color: var(--soft); }
.lead { font-size: 1.25rem; line-height: 1.55; }
.notes { margin: 1.5rem 0; padding: .1rem 0 .1rem 1rem;
  border-left: 3px solid var(--two); font: .9375rem/1.5 var(--sans); }
.notes p { margin: .4rem 0; }
.soft { color: var(--soft); }
.missing { margin-top: 2rem; font: .9375rem/1.5 var(--sans); color: var(--soft); }
.scroll { overflow-x: auto; }

table { border-collapse: collapse; width: 100%; font: .9375rem/1.35 var(--sans); }
th { font-weight: 600; text-align: left; }
thead th { padding: .4rem 0; color: var(--soft); font-weight: 400; font-size: .8125rem;
  vertical-align: bottom; }
tbody th, td { padding: .6rem 0; border-top: 1px solid var(--rule);
  vertical-align: top; }
thead .number, .number { text-align: right; padding-left: 1.25rem;
  white-space: nowrap; }
.single { max-width: 34rem; }
.result small { display: block; font-weight: 400; font-size: .8125rem;
  color: var(--soft); }
.result .trained { font-weight: 600; color: var(--one); }
.result .strip { width: 13rem; padding-left: 2rem; }
.strip .band { opacity: .35; }
.strip svg { display: block; width: 100%; margin-top: .2rem; }

table.stages, table.sets { margin-top: 1rem; }
.sets .group th, .stages .group th { padding-top: 1.5rem; border-top: 0;
  color: var(--soft); font-weight: 400; font-size: .8125rem; }
.part th { padding-left: .75rem; font-weight: 400; }
.stages .part th, .stages .part td, .sets td, .sets tbody th { padding-top: .4rem;
  padding-bottom: .4rem; }
.stages thead small { color: inherit; font-size: .75rem; }
.stages .number { padding-left: .9rem; }
.stages .trend { width: 9.5rem; padding-left: 1.5rem; }
.trend svg { display: block; width: 8.4rem; }
.thread { fill: none; stroke: var(--one); stroke-width: 1.2; opacity: .6; }
.sets thead + tbody .group th { padding-top: .4rem; }
.after { margin-top: 1.5rem; }
.trend .band { opacity: .3; }
.sets .why { padding-left: 1.75rem; color: var(--soft); font-size: .8125rem;
  min-width: 13rem; }
.sets small { display: block; font-weight: 400; font-size: .8125rem;
  color: var(--soft); }

.finding { display: grid; grid-template-columns: 9.5rem 1fr; gap: 0 1rem;
  padding: .85rem 0; border-top: 1px solid var(--rule); }
.finding > b { font: 600 .875rem/1.5 var(--sans); }
.finding h3 { margin: 0 0 .2rem; }
.finding p { margin: 0; max-width: none; font: .875rem/1.5 var(--sans); }
.verdict-open { color: var(--soft); }

figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption, .caption { margin-top: .35rem; max-width: 42rem; text-wrap: pretty;
  font: .875rem/1.5 var(--sans); color: var(--soft); }
.wide, .pair, .small { margin-top: 2rem; }
.pair, .small { display: grid; gap: 2.5rem 2.25rem; }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.narrow-chart { display: none; }

svg text { font: 12px var(--sans); }
.tick { fill: var(--soft); }
.rule { stroke: var(--rule); }
.zero { stroke: var(--base); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.one { stroke: var(--one); }
.line.two { stroke: var(--two); }
.line.raw { stroke-width: 1; opacity: .35; }
.line.base { stroke: var(--base); stroke-width: 1.5; stroke-dasharray: 5 4; }
.band { opacity: .16; }
.band.one, .dot.one, .name.one { fill: var(--one); }
.band.two, .dot.two, .name.two { fill: var(--two); }
.band.base, .dot.base { fill: var(--base); }
.name.base { fill: var(--soft); }
svg .name { font-weight: 600; }

.sample { margin-top: 2.25rem; }
.sample h3 { font-family: var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
.outputs { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.output { min-width: 0; }
.output header { display: flex; justify-content: space-between; padding-bottom: .3rem;
  font: .8125rem/1.4 var(--sans); color: var(--soft); }
.output b { font-weight: 600; }
.verdict-right { color: var(--right); }
.verdict-wrong { color: var(--wrong); }
.output pre { margin: 0; padding: .8rem 1rem; max-height: 22rem; overflow-y: auto;
  background: var(--tint); border-radius: 4px; font: .8125rem/1.6 var(--mono);
  white-space: pre-wrap; overflow-wrap: anywhere; }
.think { color: var(--soft); }
mark { background: none; color: inherit; text-decoration: underline 1.5px var(--two);
  text-underline-offset: 3px; }

details { margin-top: 1rem; }
summary { cursor: pointer; font: .9375rem/1.5 var(--sans); }
.config { margin-top: .75rem; width: auto; font: .8125rem/1.4 var(--mono); }
.config th, .config td { padding: .3rem 2rem .3rem 0; font-weight: 400;
  overflow-wrap: anywhere; }
.command { padding: .8rem 1rem; background: var(--tint); border-radius: 4px;
  overflow-x: auto; font: .875rem/1.6 var(--mono); }
code { font: .875em var(--mono); }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--rule);
  font: .8125rem/1.5 var(--sans); color: var(--soft); }

@media (max-width: 44rem) {
  body { padding: 2rem 1.1rem 3rem; font-size: 1rem; }
  h1 { font-size: 1.8rem; }
  h2 { margin-top: 3rem; }
  .lead { font-size: 1.125rem; }
  .result .strip, .result .change, .result th small { display: none; }
  .number { padding-left: .75rem; }
  .stages .trend { display: none; }
  .stages th:first-child, .sets th:first-child { position: sticky; left: 0;
    background: var(--paper); }
  .stages tbody th:first-child, .sets tbody th:first-child { min-width: 6.5rem; }
  .stages, .sets { font-size: .8125rem; }
  .stages small, .sets small { font-size: .6875rem; }
  .part th { padding-left: .4rem; }
  .finding { grid-template-columns: 1fr; }
  .wide-chart { display: none; }
  .narrow-chart { display: block; }
}
@media print {
  body { padding: 0; max-width: none; }
  .output pre { max-height: none; }
  figure, .sample { break-inside: avoid; }
}
</style>
<body>
<header>
<h1>$title</h1>
<p class="facts">$facts</p>
</header>
<main>
$body
</main>
<footer>Made from $source.</footer>
</body>
</html>
""")
