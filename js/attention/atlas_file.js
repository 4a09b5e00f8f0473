/** Reading an atlas: from a picture's address to its bytes. */

import { Atlas, tileCount } from "./maps.js";

const STRIP = 512; // rows at a time: the browser's canvas holds four bytes for every one of ours

/** The report's atlas. Throws where the file is not there any more or is not the report's. */
export async function loadAtlas(report, address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`the maps are not there any more (${answer.status})`);
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const picture = await createImageBitmap(await answer.blob(), options);
  const { width, height } = picture;
  const rows = Math.ceil(tileCount(report) / report.tile.columns);
  if (width < report.tile.columns * report.tile.width || height < rows * report.tile.height)
    throw new Error("the atlas is smaller than its tiles");
  const pixels = new Uint8Array(width * height);
  const context = new OffscreenCanvas(width, Math.min(STRIP, height)).getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += STRIP) {
    const tall = Math.min(STRIP, height - top);
    context.drawImage(picture, 0, top, width, tall, 0, 0, width, tall);
    const { data } = context.getImageData(0, 0, width, tall);
    for (let i = 0; i < width * tall; i++) pixels[top * width + i] = data[4 * i];
  }
  picture.close();
  return new Atlas(report, pixels, width);
}
