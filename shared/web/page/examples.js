// Texts to try: reviews for bundles that tell positive from negative, plain sentences for others. All of our own writing.

const REVIEWS = [
  ["Short", "An absolute joy from the first minute to the last."],
  ["Ambiguous", "Not bad, not good. Some scenes work, most do not, and I could not tell you what it was about an hour later."],
  ["Irony", "Oh, wonderful, another two hours of men shouting at maps. Just what my weekend needed. I laughed, though " +
    "never where I was supposed to."],
  ["Mixed", "If you like slow cinema you may find patience rewarded. I usually do. Here I found a camera that had been left " +
    "running, an actor who had been left alone with it, and a viewer who had been left behind."],
  ["Long", "I wanted to like it. The reviews were kind, the cast is one that I would watch reading a menu, and the first " +
    "half hour promises a great deal: a quiet town, a letter that nobody opens, a piano that is always out of tune. Then " +
    "the story remembers that it needs a plot. A brother returns, a secret falls out of a drawer, and everybody begins to " +
    "explain what they feel. There are still fine moments, and the last shot is worth the ticket for those who have " +
    "patience. But it asks for a lot of patience, and when the lights came on I was mostly relieved that it was over."],
  ["German", "Ein stiller, kluger Film, der einen noch lange nicht loslässt."],
];
const NEUTRAL = [
  ["Short", "The train was late again."],
  ["Ambiguous", "Nobody said that the plan was good, and nobody said that it was not."],
  ["Two texts", "A man is playing a guitar on a stage.", "Someone makes music."],
  ["Long", "The council met on Thursday to talk about the bridge. It was closed in spring, when a crack was found in one of " +
    "its pillars, and since then the school bus takes twenty minutes more. Two firms have sent their plans. One would mend " +
    "the pillar, the other would build the whole bridge anew, and neither can begin before the river is low. In the end " +
    "the council asked for a third opinion, and the mayor said that patience is cheaper than concrete."],
  ["German", "Der Zug hatte wieder einmal Verspätung."],
];

// [name, text, second text or undefined], by the labels of the bundle.
export function examples(labels) {
  return labels.includes("positive") && labels.includes("negative") ? REVIEWS : NEUTRAL;
}
