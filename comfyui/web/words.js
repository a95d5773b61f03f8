// The words of widgets and sidebar. Node names and tooltips are in ../locales.
import { app } from "../../scripts/app.js";

const EN = { log_likelihood: "log likelihood", edit_distance: "edit distance", right_answer: "right answer", no_worse: "no worse" };

const ZH = {
  "Accept": "采纳", "Reject": "否决", "Use my text": "使用我的文字", "Use these": "使用所选", "All go on": "全部通过",
  "Reason (optional)": "理由（可选）", "Good": "好", "Bad": "不好", "Rate": "评分",
  "Waiting for you: the whole queue waits.": "等待你的处理：整个队列都在等待。",
  "Goes on by itself at": "自动继续时间", "Kept": "已保存", "Not kept yet": "尚未保存", "Nothing to keep": "没有可保存的内容",
  "Time is over: it went on unchanged.": "已超时：按原样继续。", "Not answered, as no page was open: it went on unchanged.": "没有打开的页面，未作回答：按原样继续。", "Rejected: what follows was not run.": "已否决：后续节点未运行。",
  "Done": "完成", "Run the workflow to see something here.": "运行工作流后在此显示。",
  "ComfyLoop is not running.": "ComfyLoop 未运行。", "ComfyLoop was started and has ended.": "ComfyLoop 已启动但又退出了。",
  "ComfyLoop is starting…": "ComfyLoop 正在启动…", "Started from here; it goes on without ComfyUI.": "由此处启动；ComfyUI 关闭后它仍会运行。",
  "Start": "启动", "Stop": "停止", "Stop ComfyLoop? A training run goes on.": "停止 ComfyLoop？正在进行的训练会继续。", "Log": "日志",
  "Connected": "已连接", "Not connected": "未连接", "Project": "项目", "Live version": "当前版本", "base model": "基础模型",
  "trained from": "训练自", "samples": "个样本", "items": "条", "text": "文本", "image": "图像", "What the gate said": "评估结论",
  "Roll back": "回滚", "Go back to the version before?": "回到上一个版本？", "is live now": "已上线",
  "Next run": "下次训练", "of": "/", "pieces of feedback": "条反馈", "Waiting to be delivered": "等待发送",
  "idle": "空闲", "curating": "整理数据", "training": "训练中", "gating": "评估中", "promoting": "上线中",
  "step": "步", "loss": "损失", "Capture edits": "记录修改", "Capture is paused.": "记录已暂停。",
  "on: edits between runs are kept.": "开：记录两次运行之间的修改。", "off: nothing is captured by itself.": "关：不会自动记录。",
  "Everything stays on this machine and your service.": "所有数据只保存在本机和你的服务中。",
  "Service": "服务", "Token": "令牌", "Your name, beside what you send": "你的名字（随反馈一起保存）", "Save": "保存", "Node classes of which nothing is captured": "不记录的节点类型",
  "Before training, unload ComfyUI's models when the queue is empty": "训练前若队列为空，则卸载 ComfyUI 的模型",
  "Add the selected nodes": "加入选中的节点", "Last answers": "最近的回答", "Last images": "最近的图片", "Nothing yet.": "暂无。",
  "log_likelihood": "对数似然", "edit_distance": "编辑距离", "right_answer": "答对概率", "general picture": "通用看图", "accepted": "已采纳", "all": "全部", "vision": "看图", "general": "通用", "prompt": "提示词",
  "graph": "工作流",
  "The prompt of these images is not known:": "无法得知这些图片的提示词：",
  "Suggest the next edit": "建议下一步修改", "Next edit": "下一步修改", "What you are after (empty: the prompt)": "你想要什么（留空：即提示词）",
  "Asking…": "正在询问…", "Apply": "应用", "Not this": "不要这个", "Undo": "撤销", "Taken back": "已撤销",
  "Applied. Ctrl+Z takes it back as well.": "已应用，也可按 Ctrl+Z 撤销。", "It said:": "它的回答：",
  "The workflow was changed since: ask again.": "工作流在此之后有改动：请重新询问。", "This could not be done here:": "此处无法完成：",
  "This service does not learn from edits of workflows: learn_graph_edits is off.": "此服务不学习工作流的修改：learn_graph_edits 未开启。",
  "It links nodes of different subgraphs: do that by hand.": "它要连接不同子图中的节点：请手动完成。",
  "Remove": "删除", "Add": "添加", "Disconnect": "断开", "new": "新", "There is no node": "没有节点", "there is no input": "没有输入", "there is no value": "没有参数",
  "People want opposite answers": "有人想要相反的回答", "This phrase seems planted": "这句话像是被故意埋入的", "Somebody wants other answers than before": "有人想要的回答变了",
  "wanted": "以前想要", "now wants": "现在想要", "wants": "想要", "does not want": "不想要",
  "This one holds": "以此为准", "All of them hold": "都保留", "None of them": "都不要", "It is meant so": "本意如此", "Leave it out": "不学习它",
  "The next run goes by it.": "下次训练将以此为准。",
  "Canary": "试运行", "judged answers": "条有评价的回答", "running": "进行中", "worse": "更差，已撤回", "no_worse": "不比当前版本差", "ended": "已结束",
  "Refused by the service": "被服务拒绝", "Try again": "重试",
};

export function t(text) {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return locale.startsWith("zh") ? ZH[text] ?? text : EN[text] ?? text;
}
