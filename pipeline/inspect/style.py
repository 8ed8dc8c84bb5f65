"""Style and script of the page that shows a network."""

from __future__ import annotations

from bitkiln.pipeline.support.page import BINARY, FLOAT, OTHER

STYLE = f"""
:root{{--binary:{BINARY};--float:{FLOAT};--other:{OTHER};--line:#e3e8ee;--soft:#5a6775;--ink:#1d2733}}
body{{max-width:80rem}}
h1{{margin:0 0 .2rem;overflow-wrap:anywhere}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.8rem;margin:1.2rem 0}}
.tile{{border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}}
.tile b{{display:block;font-size:1.45rem;font-weight:600;letter-spacing:-.01em}}
.tile span{{color:var(--soft);font-size:.85rem;display:block}}
.bar{{border-radius:.25rem;overflow:hidden;height:.5rem;margin:.4rem 0 .2rem}}
.said{{list-style:none;margin:1rem 0;padding:0}}
.said li{{border-left:4px solid #e0b13a;background:#fdf8e8;padding:.5rem .8rem;margin:.4rem 0;overflow-wrap:anywhere;
border-radius:0 .4rem .4rem 0}}
.said li.note-{{border-color:#9fb4cc;background:#f4f7fb}}.said li.problem{{border-color:#c0392b;background:#fdf0ee}}
.said a,.lay a{{color:inherit;font-weight:600;text-decoration-color:#b9c4d0;cursor:pointer}}
.view{{display:grid;grid-template-columns:minmax(0,1fr) 23rem;gap:1.2rem;align-items:start}}
.graph{{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;background:#fbfcfd}}
.draw{{position:relative;margin:0 auto}}.draw svg{{position:absolute;left:0;top:0}}
.draw path{{fill:none;stroke:#a9b6c4;stroke-width:1.6}}.draw path.bits{{stroke:var(--binary);stroke-dasharray:5 3}}
.draw path.on{{stroke:var(--ink);stroke-width:2.4}}
.node{{position:absolute;box-sizing:border-box;display:flex;flex-direction:column;justify-content:center;overflow:hidden;
padding:.2rem .6rem;font:12px/1.4 system-ui,sans-serif;text-align:left;color:var(--ink);background:#fff;cursor:pointer;
border:1px solid #cfd8e1;border-left:5px solid var(--other);border-radius:.45rem}}
.node.yes{{border-left-color:var(--binary);background:#fff9f1}}.node.no{{border-left-color:var(--float);background:#f4f8fd}}
.node.end{{border:1px solid #cfd8e1;border-radius:1rem;text-align:center;background:#eef2f6;cursor:default}}
.node:not(.end):hover,.node:focus-visible{{border-color:#8a97a6;outline:none;box-shadow:0 1px 6px #1d273330}}
.node.on{{box-shadow:0 0 0 2px var(--ink)}}
.node b,.node span{{display:block;flex:none;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;line-height:1.4}}
.node b{{font-size:13px;font-weight:600}}.node span{{color:var(--soft);font-size:11.5px}}
.node .flag{{position:absolute;right:.5rem;top:.2rem;color:#b7661a;font-style:normal;font-size:12px}}
.node .flag~b{{margin-right:1rem}}
.node .cost{{position:absolute;left:0;bottom:0;height:3px;background:var(--ink);opacity:.35}}
.panel{{position:sticky;top:1rem;border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1rem;background:#fff;
max-height:calc(100vh - 4rem);overflow:auto}}
.panel h3{{margin:0 0 .3rem;font-size:1.05rem;overflow-wrap:anywhere}}.panel p{{margin:.3rem 0 .6rem}}
.panel td,.panel th{{font-size:.85rem;vertical-align:top;overflow-wrap:anywhere;padding-left:0}}
.panel th{{font-weight:400;color:var(--soft);width:5.5rem}}
.panel .top td:not(.t){{white-space:nowrap}}
.panel .ops td{{font-size:.8rem}}.panel .ops td:last-child{{white-space:nowrap;padding-right:0}}
.panel .said li{{font-size:.85rem}}.panel button{{display:none}}
.tag{{display:inline-block;border-radius:1rem;padding:.02rem .6rem;font-size:.8rem;color:#fff;background:var(--other)}}
.tag.yes{{background:#b7661a}}.tag.no{{background:var(--float)}}
.scroll{{overflow-x:auto}}.lay{{font-variant-numeric:tabular-nums}}.lay td,.lay th{{white-space:nowrap}}
.lay td:first-child{{white-space:normal;overflow-wrap:anywhere;min-width:8rem}}
.lay td.why{{white-space:normal;min-width:15rem;text-align:left}}.lay tr.minor td{{color:var(--soft)}}
.lay tr.minor a{{font-weight:400}}.lay:not(.all) tr.minor{{display:none}}.lay tr.on td{{background:#eef2f6}}
.key i{{border-radius:.2rem;vertical-align:-.05rem}}
.key i.l{{height:0;width:1.5rem;vertical-align:.25rem;border-top:2px solid #a9b6c4;border-radius:0}}
.key i.c{{border-top:3px solid #8a97a6}}.key i.d{{border-top:2px dashed var(--binary)}}
@media(max-width:62rem){{
body{{margin:1rem auto}}.view{{grid-template-columns:minmax(0,1fr)}}
.panel{{position:fixed;left:0;right:0;bottom:0;top:auto;z-index:2;max-height:46vh;border-radius:.9rem .9rem 0 0;
box-shadow:0 -4px 18px #1d273333}}
.panel.idle{{display:none}}
.panel button{{display:block;position:absolute;right:.6rem;top:.6rem;width:2rem;height:2rem;font-size:1rem;border:0;
border-radius:1rem;background:#eef2f6}}
.tiles{{grid-template-columns:repeat(2,minmax(0,1fr))}}.tile:last-child:nth-child(odd){{grid-column:1/-1}}
.tile b{{font-size:1.15rem}}
}}
"""

#: Shows the details of the block that is pointed at, or was clicked, and marks it in graph and table.
SCRIPT = """
(function () {
  var panel = document.querySelector('.panel'), pinned = null;
  function all(selector, act) { Array.prototype.forEach.call(document.querySelectorAll(selector), act); }
  function show(id) {
    all('.panel section', function (part) { part.hidden = part.id !== 'd' + (id === null ? '' : id); });
    panel.classList.toggle('idle', id === null);
    all('[data-b]', function (part) { part.classList.toggle('on', part.getAttribute('data-b') === id); });
    all('.draw path', function (edge) {
      edge.classList.toggle('on', id !== null && (' ' + edge.getAttribute('data-e') + ' ').indexOf(' ' + id + ' ') >= 0);
    });
  }
  function pin(id) { pinned = pinned === id ? null : id; show(pinned); panel.scrollTop = 0; }
  all('.node[data-b]', function (node) {
    var id = node.getAttribute('data-b');
    node.addEventListener('click', function () { pin(id); });
    if (matchMedia('(hover:hover)').matches) {
      node.addEventListener('mouseenter', function () { if (pinned === null) show(id); });
      node.addEventListener('mouseleave', function () { if (pinned === null) show(null); });
    }
  });
  all('a[data-go]', function (link) {
    link.addEventListener('click', function (event) {
      event.preventDefault();
      var id = link.getAttribute('data-go'), node = document.querySelector('.node[data-b="' + id + '"]');
      pinned = id; show(id); node.scrollIntoView({ block: 'center', inline: 'center' });
    });
  });
  document.querySelector('.panel button').addEventListener('click', function () { pinned = null; show(null); });
  document.addEventListener('keydown', function (event) { if (event.key === 'Escape') { pinned = null; show(null); } });
  var box = document.querySelector('.graph'), first = document.querySelector('.node');
  if (first) box.scrollLeft = first.offsetLeft + first.offsetWidth / 2 - box.clientWidth / 2;
  var every = document.getElementById('every');
  every.addEventListener('change', function () { document.querySelector('.lay').classList.toggle('all', every.checked); });
})();
"""
