"""The style sheet of the report."""

__all__ = ["CSS"]

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f8fa; --card: #ffffff; --text: #1b1f24; --muted: #57606a; --line: #d8dee4; --accent: #0b62a8;
  --clean: #0f766e; --worst: #c2410c; --bad: #b42318; --bad-soft: #fdecea; --good: #17663a; --good-soft: #e8f5ec;
  --soft: #eef2f6; --shade: #1b1f2447;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #161b22; --text: #e6edf3; --muted: #9aa7b4; --line: #30363d; --accent: #6cb6ff;
    --clean: #4fd1b5; --worst: #ff9b5e; --bad: #ff8b80; --bad-soft: #3a1a1a; --good: #7bd88f; --good-soft: #14301f;
    --soft: #21262d; --shade: #000000b0;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
.skip { position: absolute; left: -999px; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .5rem 1rem; z-index: 2; }
.layout { max-width: 1320px; margin: 0 auto; padding: 0 1.25rem 4rem; }
header { padding: 2.25rem 0 1.25rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.1rem); line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .6rem; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; }
h2 + h3 { margin-top: .6rem; }
p { margin: .5rem 0; max-width: 74ch; }
a { color: var(--accent); }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre {
  background: var(--soft); border-radius: 6px; padding: .7rem .9rem; margin: .5rem 0; max-width: 100%;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
.muted { color: var(--muted); }
.lead { color: var(--muted); margin: 0; overflow-wrap: anywhere; }
nav { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1.1rem; }
nav h2 {
  font-size: .82rem; text-transform: uppercase; letter-spacing: .06em; color: var(--muted); margin: 0 0 .4rem;
}
nav ol { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; }
nav a { text-decoration: none; display: inline-block; padding: .2rem 0; }
nav a:hover, nav a:focus { text-decoration: underline; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.4rem;
  margin-top: 1.1rem;
}
@media (min-width: 1080px) {
  .layout { display: grid; grid-template-columns: 200px minmax(0, 1fr); column-gap: 1.6rem; }
  header { grid-column: 1 / -1; }
  nav { position: sticky; top: 1rem; align-self: start; margin-top: 1.1rem; }
  nav ol { display: block; }
}
main { min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 0 0 1.2rem; }
.tile { background: var(--soft); border-radius: 8px; padding: .8rem 1rem; }
.tile dt { color: var(--muted); font-size: .86rem; }
.tile dd {
  margin: .1rem 0 0; font-size: 1.55rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums;
}
.tile dd small { display: block; font-size: .82rem; font-weight: 400; color: var(--muted); }
.bars { list-style: none; margin: .6rem 0 0; padding: 0; }
.bars li {
  display: grid; grid-template-columns: minmax(6.5rem, 11rem) minmax(0, 1fr) 11.5rem; gap: .3rem .8rem;
  align-items: center; padding: .22rem 0;
}
.bars .name { font-weight: 550; overflow-wrap: anywhere; }
.bars .value { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars .value small { color: var(--muted); }
.track { position: relative; height: 1.15rem; background: var(--soft); border-radius: 3px; }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--accent); border-radius: 3px; }
.fill.clean { background: var(--clean); } .fill.worst { background: var(--worst); }
.whisker {
  position: absolute; top: 50%; height: .55rem; transform: translateY(-50%); border: solid var(--text);
  border-width: 0 2px;
}
.whisker::before {
  content: ""; position: absolute; inset: calc(50% - 1px) 0 auto; border-top: 2px solid var(--text);
}
@media (max-width: 620px) {
  .layout { padding: 0 .7rem 3rem; } section { padding: 1rem .9rem; }
  .bars li { grid-template-columns: 1fr auto; } .bars .track { grid-column: 1 / -1; grid-row: 2; }
}
.banner { border-left: 5px solid; border-radius: 6px; padding: .7rem 1rem; margin: 0 0 1.1rem; }
.banner p { margin: 0; } .banner ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.banner.bad { border-color: var(--bad); background: var(--bad-soft); }
.banner.good { border-color: var(--good); background: var(--good-soft); }
.banner.quiet { border-color: var(--muted); background: var(--soft); }
.verdict { font-weight: 650; white-space: nowrap; }
.verdict.fail { color: var(--bad); }
.verdict.pass { color: var(--good); }
.verdict.other { color: var(--muted); font-weight: 400; }
/* A shadow at the edge behind which a wide table goes on: the cards' colour, moving along, covers it at the ends. */
.scroll {
  overflow-x: auto; margin: 0 0 .9rem;
  background:
    linear-gradient(90deg, var(--card) 40%, transparent) 0 0 / 2.5rem 100% local,
    linear-gradient(-90deg, var(--card) 40%, transparent) 100% 0 / 2.5rem 100% local,
    linear-gradient(90deg, var(--shade), transparent) 0 0 / .9rem 100% scroll,
    linear-gradient(-90deg, var(--shade), transparent) 100% 0 / .9rem 100% scroll;
  background-repeat: no-repeat;
}
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
.caption { color: var(--muted); font-size: .9rem; margin: .9rem 0 .3rem; max-width: none; }
th, td { padding: .4rem .55rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
td.text, th.text { text-align: left; } td.text { white-space: normal; }
th:first-child { text-align: left; padding-left: .1rem; }
tbody th, tfoot th { font-weight: 550; white-space: nowrap; }
.prose tbody th { white-space: normal; min-width: 9rem; }
.prose td.text { min-width: 11rem; } .prose td.text:nth-child(2) { min-width: 4rem; }
.prose td.text:last-child { min-width: 18rem; }
thead th { color: var(--muted); font-weight: 550; vertical-align: bottom; }
tfoot th, tfoot td { border-bottom: 0; border-top: 2px solid var(--text); font-weight: 650; }
dl.facts {
  display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr); gap: .25rem 1rem;
  margin: .5rem 0;
}
dl.facts dt { color: var(--muted); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 620px) { dl.facts { grid-template-columns: 1fr; } dl.facts dd { margin-bottom: .4rem; } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1.2rem 1.6rem; }
figure { margin: 0; min-width: 0; }
figure > picture > img { display: block; width: 100%; max-width: 580px; height: auto; border-radius: 4px; }
figcaption { font-size: .88rem; color: var(--muted); margin: .2rem 0 .4rem; max-width: 70ch; }
figcaption strong { color: var(--text); font-size: 1rem; display: block; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--accent); }
.grid th, .grid td {
  text-align: center; border-bottom: 0; padding: .3rem .35rem; font-size: .84rem; vertical-align: top;
  white-space: normal;
}
.grid thead th { vertical-align: bottom; }
.grid tbody th {
  text-align: left; min-width: 5.2rem; position: sticky; left: 0; background: var(--card); z-index: 1;
  vertical-align: middle;
}
.grid img {
  display: block; margin: 0 auto .2rem; width: 88px; height: auto; image-rendering: pixelated; border-radius: 3px;
}
.grid img.fine { width: 150px; image-rendering: auto; }
.grid .pair { border-left: 1px solid var(--line); }
.wrong { color: var(--bad); font-weight: 650; }
.scale {
  display: inline-block; width: 9rem; height: .7rem; border-radius: 3px; vertical-align: middle; margin: 0 .4rem;
}
.scale.diverging { background: linear-gradient(90deg, #053061, #4393c3, #f7f7f7, #d6604d, #67001f); }
.scale.sequential { background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.scale.heat { background: linear-gradient(90deg, #000004, #51127c, #b73779, #fc8961, #fcfdbf); }
footer { grid-column: 1 / -1; color: var(--muted); font-size: .86rem; padding-top: 1.5rem; }
@media print {
  nav { display: none; }
  section { break-inside: avoid; border: 0; }
  body { background: #fff; }
  .scroll { overflow: visible; background: none; }
}
"""
