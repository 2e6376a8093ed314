// Before the first paint: the theme that was chosen here.
"use strict";
try {
  const theme = localStorage.getItem("pyllama2.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // without storage, the system's theme
}
