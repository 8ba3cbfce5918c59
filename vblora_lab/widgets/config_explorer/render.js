export default {
  render({ model, el }) {
    const explorer = new Explorer(model, el);
    return () => explorer.leave();
  },
};
