// Before anything is painted: the theme that was chosen here, or the system's.
{
  const system = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const chosen = localStorage.getItem("litevl.theme");
    document.documentElement.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", paint);
  paint();
}
