"use strict";
// The forward pass of russellgrad/russelltransformer.py, with the same names, and the sampling of generation.py.
// Shapes: T new tokens after S cached ones, C = embed_dim = hidden_size, H heads of width D = C / H. All arrays are flat
// and row-major: element (i, j) of an array (n, m) is at i * m + j. Weights are float32, all else is float64. Matrices
// w_... are stored transposed, one row for each output, so that products read memory in order.

// --- Weights

/** The number that a float16 has (IEEE 754: 1 bit for the sign, 5 for the exponent, 10 for the fraction). */
function decodeHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Decode the parameters from base64: {name: Float32Array}. `parameters` lists their names and shapes in order. */
function decodeWeights(base64, parameters, dtype) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const values = dtype === "float16"
    ? Float32Array.from(new Uint16Array(bytes.buffer), decodeHalf)
    : new Float32Array(bytes.buffer);
  const weights = {};
  let start = 0;
  for (const { name, shape } of parameters) {
    const size = shape.reduce((product, length) => product * length, 1);
    weights[name] = values.subarray(start, start + size);
    start += size;
  }
  return weights;
}

// --- Functions

/** The product x @ weight^T + bias of x (T, n) and weight (m, n): (T, m). `bias` (m) may be undefined.
 *
 * It computes 4 rows by 2 columns of the output at a time, which reads each number less often. At the edges, where there
 * are fewer, some are the same ones. */
function linear(x, weight, bias, n) {
  const m = weight.length / n, T = x.length / n, out = new Float64Array(T * m);
  for (let t = 0; t < T; t += 4) {
    const t1 = Math.min(t + 1, T - 1), t2 = Math.min(t + 2, T - 1), t3 = Math.min(t + 3, T - 1);
    for (let j = 0; j < m; j += 2) {
      const j1 = Math.min(j + 1, m - 1);
      let sum00 = 0, sum10 = 0, sum20 = 0, sum30 = 0, sum01 = 0, sum11 = 0, sum21 = 0, sum31 = 0;
      for (let i = 0; i < n; i++) {
        const x0 = x[t * n + i], x1 = x[t1 * n + i], x2 = x[t2 * n + i], x3 = x[t3 * n + i];
        const w0 = weight[j * n + i], w1 = weight[j1 * n + i];
        sum00 += x0 * w0; sum10 += x1 * w0; sum20 += x2 * w0; sum30 += x3 * w0;
        sum01 += x0 * w1; sum11 += x1 * w1; sum21 += x2 * w1; sum31 += x3 * w1;
      }
      out[t * m + j] = sum00; out[t1 * m + j] = sum10; out[t2 * m + j] = sum20; out[t3 * m + j] = sum30;
      out[t * m + j1] = sum01; out[t1 * m + j1] = sum11; out[t2 * m + j1] = sum21; out[t3 * m + j1] = sum31;
    }
  }
  if (bias) for (let i = 0; i < out.length; i++) out[i] += bias[i % m];
  return out;
}

/** Layer normalization of each row of x (T, C): Ba et al., arXiv:1607.06450. */
function layerNorm(x, gamma, beta, eps) {
  const C = gamma.length, out = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += C) {
    let mean = 0, variance = 0;
    for (let c = 0; c < C; c++) mean += x[start + c] / C;
    for (let c = 0; c < C; c++) variance += (x[start + c] - mean) ** 2 / C;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let c = 0; c < C; c++) out[start + c] = (x[start + c] - mean) * scale * gamma[c] + beta[c];
  }
  return out;
}

/** The maximum of a list of numbers of any length: Math.max(...values) has a limit. */
function largest(values) {
  return values.reduce((most, value) => Math.max(most, value), -Infinity);
}

/** e^x / sum e^x of a list of numbers. Subtracting the maximum first prevents overflow. */
function softmax(values) {
  const top = largest(values);
  const exponentials = values.map((value) => Math.exp(value - top));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

// Coefficients of W. J. Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23
// (1969), tables II and III. Numerator, then denominator; highest power first.
const ERF_SMALL = [
  [1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3],
  [1, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3],
];
const ERFC_MIDDLE = [
  [2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1, 2.98635138197400131e2,
    8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3],
  [1, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
    3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3],
];

/** The rational function at x, numerator / denominator, by Horner's method. */
function ratio([numerator, denominator], x) {
  let above = 0, below = 0;
  for (let i = 0; i < numerator.length; i++) {
    above = above * x + numerator[i];
    below = below * x + denominator[i];
  }
  return above / below;
}

/** The error function. Beyond 4 it is 1 within 2e-8. */
function erf(x) {
  const y = Math.abs(x);
  if (y <= 0.46875) return x * ratio(ERF_SMALL, x * x);
  return Math.sign(x) * (y < 4 ? 1 - Math.exp(-y * y) * ratio(ERFC_MIDDLE, y) : 1);
}

const ACTIVATIONS = {
  leaky_relu: (x) => (x > 0 ? x : 0.01 * x),
  relu: (x) => (x > 0 ? x : 0),
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

// --- Byte-pair encoding

/** Text to token ids and tokens to bytes, as russellgrad/bpe.py. `tokens` are written as in GPT-2's vocab.json. */
class BPE {
  constructor({ tokens, merges }) {
    const printable = (byte) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    this.characterOf = [];  // of each byte: itself, or one from U+0100 on
    for (let byte = 0, others = 0; byte < 256; byte++)
      this.characterOf.push(String.fromCharCode(printable(byte) ? byte : 0x100 + others++));
    this.byteOf = new Map(this.characterOf.map((character, byte) => [character, byte]));
    this.tokens = tokens;
    this.idOf = new Map(tokens.map((token, id) => [token, id]));
    this.rankOf = new Map(merges.map((pair, rank) => [pair.join(" "), rank]));  // a space is in no token
    this.words = /'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
  }

  /** When training found the pair; Infinity if it is no merge, or one of the two is undefined. */
  rank(left, right) {
    return left && right ? this.rankOf.get(`${left} ${right}`) ?? Infinity : Infinity;
  }

  encode(text) {
    return (text.match(this.words) ?? []).flatMap((word) => {
      let parts = Array.from(new TextEncoder().encode(word), (byte) => this.characterOf[byte]);
      for (;;) {
        const best = parts.reduce((least, part, i) => Math.min(least, this.rank(part, parts[i + 1])), Infinity);
        if (best === Infinity) return parts.map((part) => this.idOf.get(part));
        const merged = [];
        let stop = false;  // a new token is in a pair that comes first
        for (let i = 0; i < parts.length; i++) {
          if (stop || this.rank(parts[i], parts[i + 1]) !== best) {
            merged.push(parts[i]);
            continue;
          }
          const token = parts[i] + parts[++i];
          stop = Math.min(this.rank(merged.at(-1), token), this.rank(token, parts[i + 1])) < best;
          merged.push(token);
        }
        parts = merged;
      }
    });
  }

  bytesOf(id) {
    const token = this.tokens[id], bytes = [...token].map((character) => this.byteOf.get(character));
    return bytes.includes(undefined) ? new TextEncoder().encode(token) : Uint8Array.from(bytes);
  }
}

// --- The model

/** The keys and values of the tokens so far, so that each step computes only those of new tokens. It also keeps what the
 * page shows: the attention weights, and the residual stream, which is the embedding and the output of each layer. */
class KVCache {
  constructor(model) {
    const size = model.maxSeqLen * model.hiddenSize;
    this.ids = [];  // the cached tokens, at most maxSeqLen
    this.layers = Array.from({ length: model.nLayers }, () => ({
      keys: new Float64Array(size),  // (maxSeqLen, C)
      values: new Float64Array(size),
      weights: Array.from({ length: model.nHeads }, () => new Float32Array(model.maxSeqLen ** 2)),  // query by key
    }));
    this.residuals = Array.from({ length: model.nLayers + 1 }, () => new Float64Array(size));
  }
}

class Transformer {
  /** `config` is that of explore.py: sizes, names and the vocabulary. `weights` has a Float32Array for each name. */
  constructor(config, weights) {
    this.weights = weights;
    this.nLayers = config.n_layers;
    this.nHeads = config.n_attn_heads;
    this.hiddenSize = config.embed_dim;
    this.maxSeqLen = config.max_seq_len;
    this.eps = config.eps;
    this.activation = ACTIVATIONS[config.activation];
    this.vocabulary = [...config.vocabulary];  // characters by code points, or the texts of tokens
    this.bpe = config.bpe ? new BPE(config.bpe) : null;
    this.vocabSize = this.vocabulary.length;
    this.padTokenId = this.vocabSize;
    this.idOf = new Map(this.vocabulary.map((character, id) => [character, id]));
  }

  /** The embeddings of tokens, the first of which is at position `first`: (T, C). */
  embed(ids, first) {
    const C = this.hiddenSize, out = new Float64Array(ids.length * C);
    const tokens = this.weights["tokenizer.token_embedding"], positions = this.weights["tokenizer.positional_encoding"];
    ids.forEach((id, t) => {
      for (let c = 0; c < C; c++) out[t * C + c] = tokens[id * C + c] + positions[(first + t) * C + c];
    });
    return out;
  }

  /** Append T tokens to the cache: their keys, values, attention weights and residual stream. */
  forward(ids, cache) {
    const S = cache.ids.length, first = cache.ids.filter((id) => id !== this.padTokenId).length;
    if (S + ids.length > this.maxSeqLen) throw new RangeError(`${S + ids.length} tokens are more than ${this.maxSeqLen}`);
    let x = this.embed(ids, first);  // (T, C)
    cache.ids.push(...ids);
    cache.residuals[0].set(x, S * this.hiddenSize);
    cache.layers.forEach((layer, i) => {
      x = this.block(`blocks.${i}`, x, layer, cache);
      cache.residuals[i + 1].set(x, S * this.hiddenSize);
    });
  }

  /** x = x + attention(norm(x)); x = x + feed_forward(norm(x)): (T, C) -> (T, C). */
  block(name, x, layer, cache) {
    x = add(x, this.attention(`${name}.attention`, this.norm(`${name}.attention_norm`, x), layer, cache));
    return add(x, this.feedForward(`${name}.feed_forward`, this.norm(`${name}.feed_forward_norm`, x)));
  }

  norm(name, x) {
    return layerNorm(x, this.weights[`${name}.gamma`], this.weights[`${name}.beta`], this.eps);
  }

  /** Causal multi-head self-attention: (T, C) -> (T, C). Padding is hidden from all tokens. */
  attention(name, x, layer, cache) {
    const C = this.hiddenSize, D = C / this.nHeads, T = x.length / C, S = cache.ids.length - T;
    const qkv = linear(x, this.weights[`${name}.w_qkv`], this.weights[`${name}.b_qkv`], C);  // (T, 3 C)
    for (let t = 0; t < T; t++) {
      layer.keys.set(qkv.subarray((3 * t + 1) * C, (3 * t + 2) * C), (S + t) * C);
      layer.values.set(qkv.subarray((3 * t + 2) * C, (3 * t + 3) * C), (S + t) * C);
    }
    const out = new Float64Array(T * C);
    for (let head = 0; head < this.nHeads; head++) {
      for (let t = 0; t < T; t++) {
        const scores = new Float64Array(S + t + 1);  // of the keys up to the query's own
        for (let s = 0; s <= S + t; s++) {
          let product = 0;
          for (let d = head * D; d < (head + 1) * D; d++) product += qkv[3 * t * C + d] * layer.keys[s * C + d];
          scores[s] = cache.ids[s] === this.padTokenId ? -Infinity : product / Math.sqrt(D);
        }
        const weights = softmax(scores);
        layer.weights[head].fill(0, (S + t) * this.maxSeqLen, (S + t + 1) * this.maxSeqLen);
        layer.weights[head].set(weights, (S + t) * this.maxSeqLen);
        for (let s = 0; s <= S + t; s++)
          for (let d = head * D; d < (head + 1) * D; d++) out[t * C + d] += weights[s] * layer.values[s * C + d];
      }
    }
    const projection = this.weights[`${name}.w_out`];
    return projection ? linear(out, projection, this.weights[`${name}.b_out`], C) : out;
  }

  /** Two linear maps with an activation between them: (T, C) -> (T, C). */
  feedForward(name, x) {
    const { weights } = this;
    const hidden = linear(x, weights[`${name}.w_in`], weights[`${name}.b_in`], this.hiddenSize);  // (T, projDim)
    for (let i = 0; i < hidden.length; i++) hidden[i] = this.activation(hidden[i]);
    return linear(hidden, weights[`${name}.w_out`], weights[`${name}.b_out`], weights[`${name}.b_in`].length);
  }

  /** The logits of the character after a position in the cache, (vocabSize). The padding class is left out. */
  logits(cache, position) {
    const C = this.hiddenSize;
    let x = cache.residuals[this.nLayers].subarray(position * C, (position + 1) * C);
    if (this.weights["final_norm.gamma"]) x = this.norm("final_norm", x);
    return linear(x, this.weights["tokenizer.token_embedding"], undefined, C).subarray(0, this.vocabSize);
  }

  /** Bring the cache up to date with a text, and return the logits of the next character.
   *
   * The model sees the last maxSeqLen tokens. Those that the cache begins with are not computed again. When the text is
   * longer than that, every token has another position at each step, so all keys and values are computed again. */
  nextLogits(ids, cache) {
    const context = ids.slice(-this.maxSeqLen);
    const changed = context.findIndex((id, t) => id !== cache.ids[t]);
    cache.ids.length = changed < 0 ? context.length : changed;
    if (changed >= 0) this.forward(context.slice(changed), cache);
    return this.logits(cache, context.length - 1);
  }
}

function add(x, y) {
  return x.map((value, i) => value + y[i]);
}

// --- Sampling

/** Random numbers from a seed: xorshift, G. Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (2003). */
class Generator {
  constructor(seed) {
    this.state = (seed ^ 0x9e3779b9) | 0 || 1;  // any number but 0, which would stay 0
    for (let i = 0; i < 16; i++) this.random();  // similar seeds begin alike
  }

  /** A number in [0, 1). */
  random() {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return (this.state >>> 0) / 2 ** 32;
  }
}

/** The probability of each token after temperature and then top-k: (vocabSize). `topK` 0 is no limit.
 *
 * Temperature 0 gives all probability to the most likely token. Among equal logits, lower ids come first. */
function samplingProbabilities(logits, temperature, topK) {
  const ranked = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const chosen = ranked.slice(0, temperature === 0 ? 1 : topK || logits.length);
  const top = logits[ranked[0]];  // subtracted before the division, which may overflow
  const probabilities = softmax(chosen.map((id) => (temperature === 0 ? 0 : (logits[id] - top) / temperature)));
  const out = new Float64Array(logits.length);
  chosen.forEach((id, i) => { out[id] = probabilities[i]; });
  return out;
}

/** Draw a token with these probabilities. */
function draw(probabilities, generator) {
  let rest = generator.random();
  for (let id = 0; id < probabilities.length; id++) {
    rest -= probabilities[id];
    if (rest < 0) return id;
  }
  return probabilities.findLastIndex((probability) => probability > 0);  // rounding left a rest
}
