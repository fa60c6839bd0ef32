//! Writes GGUF files for the tests.

/// A file under construction. Tensors are laid out in order, aligned.
#[derive(Default)]
pub struct Writer {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Writer {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) -> &mut Self {
        text(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
        self
    }

    pub fn u32(&mut self, name: &str, value: u32) -> &mut Self {
        self.key(name, 4, &value.to_le_bytes())
    }

    pub fn f32(&mut self, name: &str, value: f32) -> &mut Self {
        self.key(name, 6, &value.to_le_bytes())
    }

    pub fn bool(&mut self, name: &str, value: bool) -> &mut Self {
        self.key(name, 7, &[value.into()])
    }

    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.key(name, 8, &bytes)
    }

    pub fn texts(&mut self, name: &str, values: &[String]) -> &mut Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| text(&mut bytes, v));
        self.key(name, 9, &bytes)
    }

    pub fn i32s(&mut self, name: &str, values: &[i32]) -> &mut Self {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        self.key(name, 9, &bytes)
    }

    pub fn f32s(&mut self, name: &str, values: &[f32]) -> &mut Self {
        let mut bytes = 6u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        self.key(name, 9, &bytes)
    }

    /// A tensor by its type's number; `shape` has rows first.
    pub fn tensor(&mut self, name: &str, shape: &[u32], kind: u32, bytes: Vec<u8>) -> &mut Self {
        let shape = shape.iter().rev().map(|n| u64::from(*n)).collect();
        self.tensors.push((name.into(), shape, kind, bytes));
        self
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.to_le_bytes());
        out.extend(&self.keys);
        let mut data: Vec<u8> = Vec::new();
        for (name, shape, kind, bytes) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}
