// The frames of a film: a click or an arrow key chooses one.
const choose = (button) => {
  element.querySelectorAll('button').forEach((one) => one.toggleAttribute('aria-current', one === button));
  trigger('select', {second: Number(button.dataset.second)});
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) choose(button);
});
element.addEventListener('keydown', (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  const buttons = [...element.querySelectorAll('button')];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (step && next) { event.preventDefault(); next.focus(); choose(next); }
});
