// Keys of the whole page, and questions that are suggested.
(() => {
  const find = (selector) => document.querySelector(selector);
  const shown = (node) => node !== null && node.offsetParent !== null;
  const typing = (node) => node !== null && (node.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(node.tagName));
  const keys = {
    '/': () => find('#question textarea, #question input')?.focus(),
    'u': () => find('#drop input[type=file]')?.click(),
    '?': () => { const help = find('#keys details'); if (help) { help.open = !help.open; help.scrollIntoView({block: 'nearest'}); } },
  };
  document.addEventListener('click', (event) => {
    const asked = event.target.closest?.('[data-question]'), field = find('#question textarea');
    if (!asked || !field) return;
    field.value = asked.dataset.question;
    field.dispatchEvent(new Event('input', {bubbles: true}));
    field.focus();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && shown(find('#stop'))) { event.preventDefault(); find('#stop').click(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || typing(document.activeElement)) return;
    const action = keys[event.key.toLowerCase()];
    if (action) { event.preventDefault(); action(); }
  });
})();
